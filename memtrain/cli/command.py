"""`memtrain COMMAND`: all commands under one name; `train.py` and `evaluate.py` are the same in a clone."""

from __future__ import annotations

import sys

from memtrain.cli import evaluate, train
from memtrain.cli.spoken import TRAIN_COMMANDS

OVERVIEW = """usage: memtrain COMMAND [options]

Before training:
  scan        Find the files of a data set that are one picture.
  plan        Print what a training would do and take, without training.
Training:
  train       Fine-tune a model, and act on the samples that it memorizes.
  rewind      Take a run up again before what it flagged, without that.
  export      Make a pipeline of a checkpoint.
May the model be released?
  measure     Say which training pictures come back, and whether that is chance.
  compare     Say what a second run gained over a first, and what it cost.
  report      Make the report of results anew.
Prompts of any model:
  detect      Score prompts for memorization.
  mitigate    Compare sampling with and without a mitigation.
  attention   Draw what each token receives of the attention.
  localize    Find and mask the neurons that carry memorized images.
  calibrate   Measure what `localize` goes by.
  metrics     Measure folders of images.

`memtrain COMMAND --help` lists the options of a command."""


def main(args: list[str] | None = None) -> None:
    """`memtrain COMMAND ...`.

    Args:
        args: arguments instead of those of the command line.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(OVERVIEW)
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
