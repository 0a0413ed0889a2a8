"""The commands: `memtrain train` is a LightningCLI, and each stage of an evaluation is a command.

`memtrain scan` looks through the data before training. Each imports what it needs when it is called: evaluating the
prompts of a model and scanning need no Lightning.
"""

import os
import sys

from memtrain.cli.help.asked import shown_help
from memtrain.cli.outcome import printing
from memtrain.cli.spoken import TRAIN_COMMANDS, evaluate_command, train_command
from memtrain.cli.stopped import stopped_by_signals

# Read by transformers while it is imported, which otherwise warns about a package that nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The libraries of the Hub count their uses; nothing of a private training is counted.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = ["evaluate", "train"]


def train(args: list[str] | None = None) -> None:
    """See :func:`memtrain.cli.training.train`; a first word `scan`, `plan`, `rewind` or `export` names a command."""
    words = sys.argv[1:] if args is None else args
    name = words[0] if words[:1] and words[0] in TRAIN_COMMANDS else "train"
    if shown_help(name, words):
        return
    with (
        stopped_by_signals(train_command(words)),
        printing(name, words[1:] if name in TRAIN_COMMANDS else words) as rest,
    ):
        if name == "scan":
            from memtrain.cli import scan

            scan.scan_command(rest)
        elif name == "plan":
            from memtrain.cli import plan

            plan.plan(rest)
        elif name == "rewind":
            from memtrain.cli import rewind

            rewind.rewind(rest)
        elif name == "export":
            from memtrain.cli import export

            export.export(rest)
        else:
            from memtrain.cli import training

            if args is None:
                # Lightning's command line reads the words of the program itself.
                sys.argv[1:] = rest
            training.train(None if args is None else rest)


def evaluate(args: list[str] | None = None) -> None:
    """See :func:`memtrain.cli.evaluation.evaluate`."""
    words = sys.argv[1:] if args is None else args
    name = evaluate_command(words)[1]
    if words[:1] not in (["--help"], ["-h"]) and shown_help(name, words):
        return
    with stopped_by_signals(evaluate_command(words)), printing(name, words) as rest:
        from memtrain.cli import evaluation, evaluation_parts

        evaluation.evaluate(rest, run=evaluation_parts.run_command)
