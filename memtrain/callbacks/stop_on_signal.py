"""A training keeps its work when SIGTERM, SIGUSR1, SIGINT (Ctrl+C) or SIGHUP ends it, between two batches.

The handler sets a flag. After the current batch, the run's own checkpoint code writes a checkpoint, and the records end
with the same batch. The command's exit status is 128 plus the signal's number, so that commands for a finished training
do not follow. A second signal ends the training at once, unless it is SIGUSR1.

- Before the first batch (caches fill, the base model is measured) the command ends at once. Computed values are kept.
- A validation is finished first, because it runs under other weights. For SIGTERM and SIGUSR1, the end of a training
  (export, evidence) is also finished first, with exit status 0.
- Several processes stop after the same batch, even if only one of them got the signal. They exchange about every
  :data:`SECONDS` seconds, and at least once in `log_every_n_steps` batches, over their usual connection (gloo, NCCL).
  All of them exchange after the same batch.

With `slurm/train.sbatch`, Slurm sends SIGUSR1 before the time limit, and the script requeues the job. Lightning's own
code (`SLURMEnvironment` with `auto_requeue`) saves within the handler, in the middle of a batch, and also requeues jobs
that end by themselves. So it is switched off. If you give the trainer this environment as a plugin, Lightning handles
the signals, and this callback does nothing.

`memtrain train` adds it to every run. Cost: none on one process, and an exchange of two numbers among several.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from memtrain.callbacks.base import Callback
from memtrain.files.exit_status import by_signal

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SECONDS = 20.0
"""About the seconds between two exchanges. A longer batch is finished first."""
WORKERS = 60
"""Seconds that a worker goes on after SIGTERM, so that the current batch gets its data."""


class Stopped(SystemExit):
    """A signal stopped a training, which kept its work.

    Args:
        number: the number of the signal.
        checkpoint: the checkpoint to continue from.
        folder: the run folder.

    Attributes:
        code: the exit status of the command.
    """

    def __init__(self, number: int, checkpoint: Path, folder: Path) -> None:
        super().__init__(by_signal(number))
        self.number, self.checkpoint, self.folder = number, checkpoint, folder


class StopOnSignal(Callback):
    """Write a checkpoint and stop at a signal."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._phase: Literal["before", "training", "end"] = "before"
        self._former: dict[int, Any] = {}
        self._own_process = 0
        self._turns = Turns()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Handle the signals, and Slurm's signals, instead of Lightning."""
        connector: Any = trainer._accelerator_connector
        environment = connector.cluster_environment
        if getattr(environment, "auto_requeue", False):
            if getattr(connector, "_cluster_environment_flag", None) is not None:
                return
            environment.auto_requeue = False
        if stage == "fit":
            self._received, self._phase, self._own_process = None, "before", os.getpid()
            self._take()

    def _take(self) -> None:
        for number in SIGNALS:
            try:
                former = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread
                return
            self._former.setdefault(number, former)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._own_process:  # a worker, because Slurm signals all processes of a job's step
            if number == signal.SIGTERM:
                signal.alarm(WORKERS)
            return
        again = self._received is not None
        if again and number == signal.SIGUSR1:
            return
        ends = self._phase == "end" and number in (signal.SIGINT, signal.SIGHUP)
        if again or ends or self._phase == "before":
            raise KeyboardInterrupt(number)
        self._received = number

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back, because Lightning has just taken it."""
        if self._former:
            self._take()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is work to keep from now on."""
        if self._former:
            self._take()
            self._phase = "training"
        self._turns = Turns(most=getattr(trainer, "log_every_n_steps", 0) or 50)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if a signal came."""
        told = float(self._received or 0)
        if trainer.world_size > 1:
            seconds = self._turns.seconds_of_a_batch()
            if seconds is None:
                return
            both = torch.tensor([told, seconds], device=trainer.strategy.root_device)
            told, seconds = trainer.strategy.reduce(both, reduce_op="max").tolist()
            self._turns.agreed(seconds)
        if told:
            place = _place(trainer)
            trainer.save_checkpoint(place)
            raise Stopped(int(told), place, Path(trainer.default_root_dir))

    def _give_back(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the export, which follows, is finished or killed."""
        self._phase = "end"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the former signal handlers, and keep Lightning from restoring this callback's handlers."""
        originals = getattr(getattr(trainer, "_signal_connector", None), "_original_handlers", {})
        originals.update({number: self._former[number] for number in self._former if number in originals})
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the former signal handlers."""
        if self._phase == "end" and self._received:
            name = signal.Signals(self._received).name
            log.warning("%s came after the last batch. The end of the training was written first", name)
        self._give_back()


class Turns:
    """The batches after which several processes exchange, the same on each, because each counts from agreed numbers.

    Args:
        most: largest number of batches from one exchange to the next. The first exchange is after the first batch.
    """

    def __init__(self, most: int = 50) -> None:
        self._most, self._every, self._batches, self._began = most, 1, 0, time.monotonic()

    def seconds_of_a_batch(self) -> float | None:
        """Return the seconds per batch since the last exchange if another one is due, or else None."""
        self._batches += 1
        if self._batches < self._every:
            return None
        return (time.monotonic() - self._began) / self._batches

    def agreed(self, seconds: float) -> None:
        """Count to the next exchange.

        Args:
            seconds: seconds of a batch on the slowest process.
        """
        self._every = max(1, min(self._most, int(SECONDS / max(seconds, 1e-6))))
        self._batches, self._began = 0, time.monotonic()


def _place(trainer: Any) -> Path:
    """Return the path that `--ckpt_path last` reads first, the last checkpoint of the run."""
    for one in trainer.checkpoint_callbacks:
        if getattr(one, "last_model_path", ""):
            return Path(one.last_model_path)
    folders = [Path(one.dirpath) for one in trainer.checkpoint_callbacks if getattr(one, "dirpath", None)]
    return (folders or [Path(trainer.default_root_dir) / "checkpoints"])[0] / "last.ckpt"
