"""Lightning's progress bar, with the optimizer steps of the run, and lines in a log where there is no terminal.

Lightning 2.6 shows `Epoch 3/-2` when `max_steps` is set and `max_epochs` is not, `80/19` after a restart in the middle
of an epoch, and nothing at all without a terminal. With `--quiet` nothing is shown.
"""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console

from memtrain.files.progress import SECONDS, progress_is_off, until_done


class ProgressBar(RichProgressBar):
    """Shows the epoch and the steps of the run, as a bar on a terminal and as lines in a log."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun = 0  # batches of this epoch that were done when the bar began
        self._lines = False
        self._first: tuple[float, int] | None = None  # time and batches of the run when this start began
        self._said = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A bar needs a terminal or a notebook; a log gets lines, and `--quiet` neither."""
        super().setup(trainer, pl_module, stage)
        console = get_console()
        self._lines = not (console.is_terminal or console.is_jupyter)
        if self._lines or progress_is_off():
            self.disable()

    @property
    def total_train_batches(self) -> int | float:
        """The batches of this epoch, or those up to the last step of the run."""
        trainer = self.trainer
        if trainer.max_epochs != -1 or trainer.max_steps == -1:
            return super().total_train_batches
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        return min(trainer.num_training_batches, self._begun + left)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar of a new epoch begins at 0."""
        self._begun = 0
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Move the bar, or write a line now and then."""
        batch_idx = int(rest[2])
        if self.train_progress_bar_id is None:
            self._begun = batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, *rest)
        now = time.monotonic()
        if self._first is None:
            self._first, self._said = (now, trainer.global_step), now
        if self._lines and trainer.is_global_zero and not progress_is_off() and now - self._said >= SECONDS:
            self._said = now
            print(self.line(now), flush=True)

    def line(self, now: float) -> str:
        """The step of the run, and how long the rest will take.

        Args:
            now: the time, as :func:`time.monotonic` gives it.
        """
        trainer = self.trainer
        began, first = self._first or (now, trainer.global_step)
        total = last_step(trainer)
        done = trainer.global_step - first
        return f"Epoch {trainer.current_epoch}, " + until_done(
            "step", trainer.global_step, total, seconds=now - began, done=done
        )

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1 or self.trainer.max_steps == -1:
            return super()._get_train_description(current_epoch)
        return f"Epoch {current_epoch}, from step {self.trainer.global_step} of {self.trainer.max_steps}"


def last_step(trainer: Trainer) -> int | None:
    """The optimizer steps of the whole run; None where nothing limits them."""
    limits = [trainer.max_steps] if trainer.max_steps != -1 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs not in (-1, None) and batches != float("inf"):
        limits.append(trainer.max_epochs * -(-int(batches) // trainer.accumulate_grad_batches))
    return min(limits, default=None)
