"""A training that is told to stop keeps its work: SIGTERM, SIGINT (Ctrl+C) and SIGHUP end it after the batch at hand.

Then a checkpoint is written as the run's checkpoints are, the records end where it does, and the command's exit status
is 128 and the signal's number, so that what should follow a finished training does not. A second signal ends it at
once. Of several processes all stop after the same batch, once `log_every_n_steps` batches; those that Slurm requeues by
itself (Lightning's `SLURMEnvironment` with `auto_requeue`) are left to that.

`train.py` adds it to every run. Cost: none; of several processes, one number is exchanged every `log_every_n_steps`
batches.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from memtrain.callbacks.base import Callback

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning."""
        self._received = None
        connector: Any = trainer._accelerator_connector
        if getattr(connector.cluster_environment, "auto_requeue", False):
            return
        for number in SIGNALS:
            try:
                self._former[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread
                return

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._give_back()
            raise KeyboardInterrupt
        self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if it was said."""
        several = trainer.world_size > 1
        if several and (trainer.fit_loop.total_batch_idx + 1) % (getattr(trainer, "log_every_n_steps", 0) or 50):
            return
        stop = self._received is not None
        if several:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            place = _place(trainer)
            trainer.save_checkpoint(place)
            raise Stopped(self._received or signal.SIGTERM, place, Path(trainer.default_root_dir))

    def _give_back(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now (the export) is finished, or killed."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._give_back()


def _place(trainer: Any) -> Path:
    """Where `--ckpt_path last` looks first: the file that the run keeps as its last."""
    for one in trainer.checkpoint_callbacks:
        if getattr(one, "last_model_path", ""):
            return Path(one.last_model_path)
    folders = [Path(one.dirpath) for one in trainer.checkpoint_callbacks if getattr(one, "dirpath", None)]
    return (folders or [Path(trainer.default_root_dir) / "checkpoints"])[0] / "last.ckpt"
