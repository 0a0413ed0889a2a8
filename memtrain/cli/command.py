"""`memtrain COMMAND`: all commands under one name; `train.py` and `evaluate.py` are the same in a clone."""

from __future__ import annotations

import pkgutil
import sys
from difflib import get_close_matches
from typing import NoReturn

from memtrain import __version__
from memtrain.cli import evaluate, train
from memtrain.cli.help.asked import shown_help
from memtrain.cli.help.overview import overview
from memtrain.cli.outcome import end, printing
from memtrain.cli.spoken import TRAIN_COMMANDS
from memtrain.cli.stopped import stopped_by_signals
from memtrain.errors import ConfigurationError
from memtrain.evaluation import stages
from memtrain.files.exit_status import ExitStatus
from memtrain.files.output import print_or_exit


def commands() -> list[str]:
    """The names of all commands; a stage of an evaluation is one as soon as its folder is there."""
    return ["demo", "train", *TRAIN_COMMANDS, *_stages(), "completion"]


def _stages() -> list[str]:
    return [found.name for found in pkgutil.iter_modules(stages.__path__) if found.ispkg]


def main(args: list[str] | None = None) -> None:
    """`memtrain COMMAND ...`.

    Args:
        args: arguments instead of those of the command line.
    """
    words = list(sys.argv[1:] if args is None else args)
    if len(words) > 1 and words[0] == "help":
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print_or_exit(overview())
        return
    name, rest = words[0], words[1:]
    if name in ("--version", "-V"):
        print_or_exit(f"memtrain {__version__}")
    elif name in ("demo", "completion"):
        if shown_help(name, rest):
            return
        with stopped_by_signals(["memtrain", *words]), printing(name, rest) as asked:
            if name == "demo":
                from memtrain.cli.demo import demo

                demo(asked)
            else:
                from memtrain.cli.completion import completion

                completion(asked)
    elif name in ("train", "fit"):
        if name == "train" and rest and rest[0] in {"demo", "completion", *_stages()}:
            with printing(name, rest):
                _refuse_second(rest)
        # Lightning's command line reads the words of the program itself; the processes that it starts begin with `fit`.
        sys.argv[1:] = rest if name == "train" else words
        train()
    elif name in TRAIN_COMMANDS:
        train(words)
    elif name in _stages():
        evaluate(words)
    else:
        with printing(name, rest):
            _refuse(name)


def _refuse_second(words: list[str]) -> NoReturn:
    """End the program: another command follows `train`."""
    error = ConfigurationError(
        f"{words[0]!r} is a command of its own, and follows `train`",
        expected="memtrain train, and options",
        remedy=f"did you mean memtrain {words[0]}?",
    )
    end(error, ExitStatus.MISUSED)


def _refuse(name: str) -> NoReturn:
    """End the program: there is no such command."""
    near = get_close_matches(name, commands(), n=1)
    error = ConfigurationError(
        f"There is no command {name!r:.80}" if not name.startswith("-") else f"{name!r:.80} stands without a command",
        expected=f"memtrain COMMAND, with one of {', '.join(commands())}",
        remedy=f"did you mean memtrain {near[0]}?" if near else "see memtrain --help",
    )
    end(error, ExitStatus.MISUSED)
