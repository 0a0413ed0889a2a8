"""One folder is one stage: a subcommand of `memtrain`."""
