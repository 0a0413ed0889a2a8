"""All commands with their screens, and the overview that `memtrain` prints."""

from __future__ import annotations

import pkgutil
from inspect import getdoc

from memtrain.cli.help import prompts, release, training
from memtrain.cli.help.screen import Screen
from memtrain.evaluation import stages
from memtrain.files.exit_status import table

SCREENS: dict[str, Screen] = {
    screen.command: screen
    for screen in (
        *(training.DEMO, training.SCAN, training.PLAN, training.TRAIN, training.REWIND, training.EXPORT),
        *(release.MEASURE, release.COMPARE, release.REPORT),
        *(prompts.DETECT, prompts.MITIGATE, prompts.ATTENTION, prompts.LOCALIZE, prompts.CALIBRATE, release.METRICS),
        training.COMPLETION,
    )
}
"""The help screen of each command that has options of its own."""

TITLES = {
    "To see what you would get": ("demo",),
    "Before training": ("scan", "plan"),
    "Training": ("train", "rewind", "export"),
    "May the model be released?": ("measure", "compare", "report"),
    "Prompts of any model": ("detect", "mitigate", "attention", "localize", "calibrate", "metrics"),
    "Your shell": ("completion",),
}
SHORT = {
    "demo": "Train and evaluate a small model up to a report, in ten minutes.",
    "scan": "Find the files of a data set that are one picture.",
    "plan": "Print what a training would do and take, without training.",
    "train": "Fine-tune a model, and act on the samples that it memorizes.",
    "rewind": "Train a run again without the samples that it flagged.",
    "export": "Write the model of a checkpoint as a pipeline.",
    "measure": "Say which training images come back, and whether that is chance.",
    "compare": "Say what a second run gained over a first, and what it cost.",
    "report": "Write the report of results again.",
    "detect": "Score prompts for memorization.",
    "mitigate": "Compare sampling with and without a mitigation.",
    "attention": "Draw the attention that each token receives.",
    "localize": "Find and mask the neurons that carry memorized images.",
    "calibrate": "Measure what `localize` compares with.",
    "metrics": "Measure folders of images.",
    "completion": "Print a script for the completion of commands in a shell.",
}
"""The line of each command in the overview."""


def stage_folders() -> list[str]:
    """The names of the stages of an evaluation, found by their folders."""
    return [found.name for found in pkgutil.iter_modules(stages.__path__) if found.ispkg]


def _says(name: str) -> str:
    """The first line of the docstring of a stage."""
    # Imported here, because it imports torch.
    from memtrain.evaluation.stages.base import stage_class

    return (getdoc(stage_class(name)) or "").splitlines()[0]


def overview() -> str:
    """The text that `memtrain` prints without a command: the commands and the exit statuses."""
    lines = ["usage: memtrain COMMAND [options]", ""]
    for title, names in TITLES.items():
        lines += [title if title.endswith("?") else f"{title}:", *(f"  {name:<12}{SHORT[name]}" for name in names)]
    # A stage of somebody else's is a command as soon as its folder is there.
    if more := [name for name in stage_folders() if name not in SCREENS]:
        lines += ["More:", *(f"  {name:<12}{_says(name)}" for name in more)]
    lines += [
        "",
        "`memtrain COMMAND --help` shows the main options, `--help all` all options.",
        "`memtrain --version` prints the version.",
        "",
        *table(),
    ]
    return "\n".join(lines)
