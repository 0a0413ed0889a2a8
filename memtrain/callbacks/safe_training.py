"""What keeps a training from losing its work: whole checkpoints, and an end when its numbers are none.

- Checkpoints, whoever asks for them, are written beside the former one, read back, and only then take its place
  (:mod:`memtrain.callbacks.checkpoint_file`); a torn one is passed over for the one before it.
- When the weights are NaN or infinite, training ends with the batch in which this began, and with the samples in it
  (:mod:`memtrain.monitoring.finite`), before a checkpoint is overwritten or a pipeline exported. A step that the loss
  scaler of `16-mixed` leaves out is no fault.
- Where one of several processes that Lightning started dies, the first one says which, and of what
  (:mod:`memtrain.callbacks.dead_processes`).
- A training that was killed after its last step and before its end was written (evidence, pipeline) comes to that end
  when it is continued: Lightning finds nothing left to train, and would do nothing.

`memtrain train` adds it to every run; a script of one's own puts it among the trainer's callbacks.

Cost: a pass over the gradients per optimizer step, without waiting for the device; that once every `every` batches; a
pass over the weights before each checkpoint. Suggested: the default.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from memtrain.callbacks.base import Callback
from memtrain.callbacks.checkpoint_io import write_whole
from memtrain.callbacks.dead_processes import name_ended
from memtrain.files.whole import written_whole
from memtrain.monitoring.finite import FiniteWatch, NumberFault

log = logging.getLogger(__name__)


class SafeTraining(Callback):
    """Write whole checkpoints, and end training whose numbers are none.

    Args:
        every: batches between two looks at what the device saw; default the trainer's `log_every_n_steps`.
    """

    watches_numbers = True
    """The monitor need not."""

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self._watch, self._begun = FiniteWatch(), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a checkpoint is read or written."""
        write_whole(trainer)
        self._watch, self._begun = FiniteWatch(), False
        # First of all: no other callback has put away what the end of a training needs.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [self, *(one for one in callbacks if one is not self)]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is something to train."""
        self._begun = True
        if trainer.is_global_zero:
            _ended(trainer).unlink(missing_ok=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """See the gradient, unless a loss scaler sees it and leaves out the step by itself."""
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            parameters = [value for group in optimizer.param_groups for value in group["params"]]
            self._watch.gradient(parameters, batch=trainer.fit_loop.total_batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See the loss; look at what was seen when it is time."""
        number = trainer.fit_loop.total_batch_idx
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._watch.loss(loss, batch=number, keys=_keys(batch))
        every: int = self.every or trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
        if (number + 1) % every == 0:
            self._require_finite(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep NaN out of checkpoints."""
        self._require_finite(trainer, pl_module, thorough=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep NaN out of what is exported: the last epoch ends before anything is."""
        self._require_finite(trainer, pl_module, thorough=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say which process had ended before, if one had."""
        name_ended(trainer, exception)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what a training does at its end, where the process that trained last did not come to it."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        cut_off = not self._begun and trainer.ckpt_path is not None and not _ended(trainer).is_file()
        if trainer.strategy.broadcast(cut_off):
            self._require_finite(trainer, pl_module, thorough=True)
            log.warning("The training was complete, and its end had not been written: that is done now")
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if not isinstance(callback, Checkpoint):
                    callback.on_train_end(trainer, pl_module)
            pl_module.on_train_end()
        if trainer.is_global_zero:
            with written_whole(_ended(trainer)) as unfinished:
                unfinished.write_text(f"{trainer.global_step}\n", encoding="utf-8")

    def _require_finite(self, trainer: Trainer, module: LightningModule, *, thorough: bool = False) -> None:
        fault = self._watch.fault(_trained(module), thorough=thorough)
        if fault is not None:
            raise fault.error(step=trainer.global_step, remedy=_remedy(trainer, fault))


def _ended(trainer: Any) -> Path:
    """A file that says that a training came to its end."""
    return Path(trainer.default_root_dir) / ".training_ended"


def _trained(module: nn.Module) -> list[Tensor]:
    return [value for value in module.parameters() if value.requires_grad]


def _keys(batch: Any) -> Sequence[str]:
    found = batch.get("key") if isinstance(batch, Mapping) else None
    return [str(key) for key in found] if isinstance(found, (list, tuple)) else []


def _remedy(trainer: Any, fault: NumberFault) -> str:
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    words = f"train anew with a lower learning rate (it is {max(rates):.3g})" if rates else "lower the learning rate"
    if "16" in str(trainer.precision):
        words += ", or in full precision (--trainer.precision 32-true)"
    if fault.keys:
        words += ", and look at the samples of that batch"
    good = _last_checkpoint(trainer)
    if good is None:
        return f"{words}; there is no checkpoint of before"
    config = Path(trainer.default_root_dir) / "config.yaml"
    command = ["memtrain", "train", "--config", str(config), "--ckpt_path", good]
    if "16" in str(trainer.precision):
        command += ["--trainer.precision", "32-true"]
    return f"{words}; the last good checkpoint goes on, with the learning rate of then, by: {shlex.join(command)}"


def _last_checkpoint(trainer: Any) -> str | None:
    """The newest of the files that the trainer's checkpoint callbacks wrote."""
    names = ("last_model_path", "best_model_path")
    paths = [Path(path) for one in trainer.checkpoint_callbacks for name in names if (path := getattr(one, name, None))]
    there = [path for path in paths if path.is_file()]
    return str(max(there, key=lambda path: path.stat().st_mtime)) if there else None
