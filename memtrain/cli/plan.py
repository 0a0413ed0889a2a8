"""`memtrain plan`: what a training would do, printed instead of done.

It takes the options of `fit`, sets everything up as `fit` does, and trains nothing. Model and data are loaded, so that
problems that would end the run are found; a problem ends the command with status 1. No image is encoded, and no base
model is measured.
Pictures are counted if the data were scanned before. Memory is estimated by a step without content
(:mod:`memtrain.training.memory_estimate`); time is measured with `--measure`, by a few steps on the device of the run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.table import Table

from memtrain.cli.chatter import quiet
from memtrain.cli.outcome import end, tell
from memtrain.cli.plan_run import PlannedRun, set_up
from memtrain.cli.plan_sections import resolved
from memtrain.cli.training import DEFAULT_CONFIG, TrainCLI, own_error
from memtrain.errors import ConfigurationError
from memtrain.files.exit_status import ExitStatus
from memtrain.records import write_json


class PlanCLI(TrainCLI):
    """Sets a run up, and does not run it."""

    run: PlannedRun

    def require_folder(self, folder: Path) -> None:
        """A plan writes nothing, so a run may lie in the folder."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.run = set_up(self.trainer, self.model, self.datamodule)


def plan(args: Sequence[str]) -> None:
    """`memtrain plan ...`.

    Args:
        args: what follows `plan`.
    """
    words = list(args)
    quiet()
    # The words are those of the command line, without ours.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    try:
        measured, file = _taken(words, "--measure"), _valued(words, "--json")
        if words[:1] == ["fit"]:
            words = words[1:]
        named = any(word.split("=")[0] == "--config" or word.startswith("-c") for word in words)
        run = _set_up(["fit", *([] if named else ["--config", DEFAULT_CONFIG]), *words])
        figures = resolved(run, measured=measured)
        show(figures, run)
        tell({**figures, "problems": run.problems, "warnings": run.warnings}, run.trainer.default_root_dir)
        if file is not None:
            write_json({**figures, "problems": run.problems, "warnings": run.warnings}, Path(file))
    except Exception as error:
        found = own_error(error)
        if found is None:
            raise
        end(found)
    if run.problems:
        sys.exit(ExitStatus.FAILED)


def _set_up(words: list[str]) -> PlannedRun:
    return PlanCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=None,
        args=words,
    ).run


def _taken(words: list[str], name: str) -> bool:
    found = name in words
    words[:] = [word for word in words if word != name]
    return found


def _valued(words: list[str], name: str) -> str | None:
    """The value of an option of ours, which is taken out."""
    for place, word in enumerate(words):
        if word.startswith(f"{name}="):
            del words[place]
            return word.partition("=")[2]
        if word == name:
            if place + 1 == len(words):
                raise ConfigurationError(f"{name} without a file", expected=f"{name} FILE", remedy="name the file")
            value = words[place + 1]
            del words[place : place + 2]
            return value
    return None


def show(figures: dict[str, dict[str, Any]], run: PlannedRun) -> None:
    """Print the plan."""
    console = Console()
    table = Table(title=f"Plan of {run.trainer.default_root_dir}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for section, lines in figures.items():
        for number, (name, value) in enumerate(lines.items()):
            text = said(name, value)
            table.add_row(section if number == 0 else "", text, end_section=number == len(lines) - 1)
    console.print(table)
    for warning in run.warnings:
        print(f"Warning: {warning}")
    for problem in run.problems:
        print(f"Problem: {problem}")
    if not run.problems:
        print("No problem was found. To train, type `train` in place of `plan`.")


def said(name: str, value: Any) -> str:
    """A figure in words."""
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')}: {size(value)}"
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, int):
        value = f"{value:,}"
    elif isinstance(value, float):
        value = f"{value:,.4g}"
    elif isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return f"{name.replace('_', ' ')}: {'unknown' if value is None else value}"


def size(count: int) -> str:
    """Bytes in words."""
    for unit, amount in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= amount:
            return f"{count / amount:,.1f} {unit}"
    return f"{count} bytes"
