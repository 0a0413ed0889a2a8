"""A training that is told to stop keeps its work: SIGTERM, SIGUSR1, SIGINT (Ctrl+C) and SIGHUP end it between batches.

The handler sets a flag. After the batch at hand a checkpoint is written as the run's checkpoints are, the records end
where it does, and the command's exit status is 128 and the signal's number, so that what should follow a finished
training does not. A second signal ends it at once, unless it is SIGUSR1.

- Before the first batch (caches fill, the base model is measured) the command ends at once; what was computed is kept.
- A validation is finished first: it runs under other weights. So is the end of a training (export, evidence), with
  exit status 0, for SIGTERM and SIGUSR1.
- Several processes stop after the same batch, whichever of them was told. They ask each other about every
  :data:`SECONDS`, as their batches last, and at least once in `log_every_n_steps` batches: always after the same batch,
  over whatever they are connected by (gloo, NCCL).

SIGUSR1 is what `slurm/train.sbatch` has Slurm send before the time limit; the script requeues the job. Lightning's own
way (`SLURMEnvironment` with `auto_requeue`) saves within the handler, in the middle of a batch, and requeues what ends
by itself, too. So it is switched off, unless the trainer was given that environment as a plugin: then Lightning is in
charge, and nothing is done here.

`memtrain train` adds it to every run. Cost: none; of several processes, two numbers are exchanged as often as said.
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

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SECONDS = 20.0
"""Between two exchanges, about. A batch that lasts longer is waited for."""
WORKERS = 60
"""Seconds that a worker goes on after SIGTERM, so that the batch at hand has what it needs."""


class Stopped(SystemExit):
    """A training was stopped by a signal, and kept its work.

    Args:
        number: of the signal.
        checkpoint: which goes on.
        folder: of the run.

    Attributes:
        code: exit status of the command.
    """

    def __init__(self, number: int, checkpoint: Path, folder: Path) -> None:
        super().__init__(128 + number)
        self.number, self.checkpoint, self.folder = number, checkpoint, folder


class StopOnSignal(Callback):
    """Write a checkpoint and stop when a signal says so."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._phase: Literal["before", "training", "end"] = "before"
        self._former: dict[int, Any] = {}
        self._own_process = 0
        self._turns = Turns()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signals, and Slurm's, over from Lightning, before it takes them itself."""
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
        if os.getpid() != self._own_process:  # a worker: Slurm tells all processes of a job's step
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
        """Lightning has just taken SIGTERM."""
        if self._former:
            self._take()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there is something to keep."""
        if self._former:
            self._take()
            self._phase = "training"
        self._turns = Turns(most=getattr(trainer, "log_every_n_steps", 0) or 50)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if it was said."""
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
        """What comes now (the export) is finished, or killed."""
        self._phase = "end"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back, and let Lightning not take ours for the former ones when it does the same."""
        originals = getattr(getattr(trainer, "_signal_connector", None), "_original_handlers", {})
        originals.update({number: self._former[number] for number in self._former if number in originals})
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        if self._phase == "end" and self._received:
            name = signal.Signals(self._received).name
            log.warning("%s came when the last batch was over: the end of the training was written first", name)
        self._give_back()


class Turns:
    """After which batches several processes exchange: the same ones on each, since each counts on from what was agreed.

    Args:
        most: batches from one exchange to the next; the first is after the first batch.
    """

    def __init__(self, most: int = 50) -> None:
        self._most, self._every, self._batches, self._began = most, 1, 0, time.monotonic()

    def seconds_of_a_batch(self) -> float | None:
        """Called after each batch: its time since the last exchange if there is one now, else None."""
        self._batches += 1
        if self._batches < self._every:
            return None
        return (time.monotonic() - self._began) / self._batches

    def agreed(self, seconds: float) -> None:
        """Count on to the next exchange.

        Args:
            seconds: of a batch of the slowest process.
        """
        self._every = max(1, min(self._most, int(SECONDS / max(seconds, 1e-6))))
        self._batches, self._began = 0, time.monotonic()


def _place(trainer: Any) -> Path:
    """Where `--ckpt_path last` looks first: the file that the run keeps as its last."""
    for one in trainer.checkpoint_callbacks:
        if getattr(one, "last_model_path", ""):
            return Path(one.last_model_path)
    folders = [Path(one.dirpath) for one in trainer.checkpoint_callbacks if getattr(one, "dirpath", None)]
    return (folders or [Path(trainer.default_root_dir) / "checkpoints"])[0] / "last.ckpt"
