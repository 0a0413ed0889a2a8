"""How a command is written where a message names it: as `memtrain`, with its words."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN_COMMANDS = ("export", "plan", "rewind", "scan")
"""Commands of their own that `train.py` takes as a first word."""
DEFAULT = "measure"
"""The stage of an evaluation that runs if the command names none."""
PROMPTS = "detect"
"""The stage that runs if the command has prompts and names no stage."""


def train_command(words: Sequence[str]) -> list[str]:
    """The words of a training as a command of `memtrain`.

    Args:
        words: the words after `train.py`: `fit` and options, options alone, or a command and its options.
    """
    if words and words[0] in TRAIN_COMMANDS:
        return ["memtrain", *words]
    return ["memtrain", "train", *(words[1:] if words[:1] == ["fit"] else words)]


def evaluate_command(words: Sequence[str]) -> list[str]:
    """The words of an evaluation as a command of `memtrain`.

    Args:
        words: the words after `evaluate.py`: a stage and options, or options alone.
    """
    if words and not words[0].startswith("-"):
        return ["memtrain", *words]
    prompts = any(word.split("=")[0] == "--prompts" for word in words)
    return ["memtrain", PROMPTS if prompts else DEFAULT, *words]
