"""`python -m memtrain COMMAND`: the same as `memtrain COMMAND`."""

from memtrain.cli.command import main

if __name__ == "__main__":
    main()
