"""The two commands: `train.py` is a LightningCLI, `evaluate.py` runs the stages of an evaluation."""

import os

# Read by transformers while it is imported, which otherwise warns about a package that nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from memtrain.cli.evaluation import evaluate, evaluate_folder
from memtrain.cli.training import train

__all__ = ["evaluate", "evaluate_folder", "train"]
