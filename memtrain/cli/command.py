"""`memtrain COMMAND`: all commands under one name; `train.py` and `evaluate.py` are the same in a clone."""

from __future__ import annotations

import sys

from memtrain.cli import evaluate, train
from memtrain.cli.help.overview import overview
from memtrain.cli.spoken import TRAIN_COMMANDS


def main(args: list[str] | None = None) -> None:
    """`memtrain COMMAND ...`.

    Args:
        args: arguments instead of those of the command line.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    name, rest = words[0], words[1:]
    if name == "train":
        # Lightning's command line reads the words of the program itself.
        sys.argv[1:] = rest
        train()
    elif name in TRAIN_COMMANDS:
        train(words)
    else:
        evaluate(words)
