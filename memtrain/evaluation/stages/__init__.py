"""One folder is one stage: a subcommand of `evaluate.py`."""
