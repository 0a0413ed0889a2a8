"""The cost of a mitigation in a training step: short runs in turn with plain training, in one process.

A run is timed from the end of its eighth batch on, over a whole multiple of eight batches, because the monitor measures
held-out samples and collects evidence every eight batches. The mean over these batches includes this work, and a median
of single steps would leave it out. Plain is the baseline's configuration without any callback of memtrain. The runs are
early ones, in which the planted images are flagged on the way; work that is done for flagged samples alone counts for
part of them.

The reference profile is measured once per model and data, before training, and then read from its folder. It is no part
of the steps; what it takes is the time to the first batch with an empty folder less that with a full one.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiment import median_interval
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from mitigation_rows import ROWS, Row, training_arguments

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.cli.chatter import quiet

CYCLE = 8
"""Batches between the monitor's updates."""
LEFT_OUT = ("PipelineExport", "ModelCheckpoint")
"""Callbacks that write at the end or now and then, and are no part of a step."""


class Stopwatch(Callback):
    """Notes when the fit began, when its first batch did, and when each batch ended; comes last among the callbacks."""

    def __init__(self) -> None:
        self.began = self.started = 0.0
        self.ends: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The data are there."""
        self.began = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The profile is there."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The other callbacks are done with the batch."""
        self.ends.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        """Mean over all batches but the first :data:`CYCLE`."""
        counted = len(self.ends) - CYCLE
        return (self.ends[-1] - self.ends[CYCLE - 1]) / counted


class Course:
    """Short runs on data that are read and encoded once per set of options.

    Args:
        folder: the folder of the benchmark; profiles are kept in it.
        steps: batches that are timed, a multiple of :data:`CYCLE`.
        seed: the seed of all runs.
    """

    def __init__(self, folder: Path, *, steps: int, seed: int = 0) -> None:
        if steps < CYCLE or steps % CYCLE:
            raise ValueError(f"steps must be a multiple of {CYCLE}, found {steps}")
        self.folder, self.steps, self.seed = folder, steps, seed
        self._data: dict[tuple[str, ...], LightningDataModule] = {}

    def run(self, row: Row | None, *, profiles: Path | None = None) -> Stopwatch:
        """One short run.

        Args:
            row: what is added; None for plain training.
            profiles: folder of reference profiles; default that of the benchmark.
        """
        with scratch() as place:
            cli = self._configure(row or ROWS[0], place)
            callbacks = [c for c in cli.trainer.callbacks if type(c).__name__ not in LEFT_OUT]  # type: ignore[attr-defined]
            if row is None:
                callbacks = [c for c in callbacks if not type(c).__module__.startswith("memtrain.")]
            folder = str(profiles or self.folder / "profiles")
            for index, callback in enumerate(callbacks):
                if isinstance(callback, MemorizationMonitor):
                    callback.engine.options = replace(callback.engine.options, reference_folder=folder)
                    if row is not None and row.monitor is not None:
                        callbacks[index] = row.monitor(folder)
            watch = Stopwatch()
            cli.trainer.callbacks = [*callbacks, watch]  # type: ignore[attr-defined]
            # Excluded keys change the data, everything else does not.
            data = self._data.setdefault(row.overrides if row is not None and row.needs_flags else (), cli.datamodule)
            cli.trainer.fit(cli.model, datamodule=data)
        return watch

    def _configure(self, row: Row, place: Path) -> LightningCLI:
        quiet()
        options = {
            "--trainer.default_root_dir": place,
            "--trainer.logger": "false",
            "--trainer.enable_model_summary": "false",
            "--trainer.max_steps": self.steps + CYCLE,
        }
        arguments = training_arguments(row, self.seed, folder=self.folder)
        arguments += [str(word) for option in options.items() for word in option]
        return LightningCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            run=False,
            args=arguments,
        )


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def compare(course: Course, row: Row, *, pairs: int) -> dict[str, Any]:
    """Time per step of a row over that of plain training.

    Args:
        course: that runs them.
        row: the row.
        pairs: runs of each; which of a pair goes first alternates.
    """
    plain, watched = [], []
    for turn in range(pairs):
        for one in (None, row) if turn % 2 == 0 else (row, None):
            (plain if one is None else watched).append(course.run(one).seconds_per_step())
    ratios = [own / base for own, base in zip(watched, plain, strict=True)]
    return {
        "pairs": pairs,
        "steps": course.steps,
        "threads": torch.get_num_threads(),
        "seconds_plain": statistics.median(plain),
        "seconds": statistics.median(watched),
        "ratio_median": statistics.median(ratios),
        "ratio_interval_95": median_interval(ratios),
    }


def profile_seconds(course: Course) -> dict[str, Any]:
    """Return the time of measuring the reference profile, once per model and data."""
    with scratch() as empty:
        first = course.run(ROWS[0], profiles=empty)
        again = course.run(ROWS[0], profiles=empty)
    seconds = (first.started - first.began) - (again.started - again.began)
    return {"seconds": seconds, "threads": torch.get_num_threads()}
