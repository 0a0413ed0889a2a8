"""Protection of a training's work: complete checkpoints, and an end of the training at NaN or infinity.

- Every checkpoint is written next to the former one and read back, and only then replaces it
  (:mod:`memtrain.callbacks.checkpoint_file`). A torn checkpoint is skipped, and the one before it is used.
- If the weights are NaN or infinite, training ends before a checkpoint is overwritten or a pipeline is exported. The
  error names the batch in which this began, and its samples (:mod:`memtrain.monitoring.finite`). A step that the loss
  scaler of `16-mixed` skips is no fault.
- If a process that Lightning started dies, the first process names it and its exit code
  (:mod:`memtrain.callbacks.dead_processes`).
- A training may be killed after its last step, before its evidence and pipeline are written. They are written when it
  is continued. Lightning alone would do nothing, because no step is left to train.

`memtrain train` adds it to every run. In your own script, add it to the trainer's callbacks.

Cost: a pass over the gradients per optimizer step without waiting for the device, one wait every `every` batches, and a
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
    """Write complete checkpoints, and end a training with NaN or infinity.

    Args:
        every: number of batches between two checks of the device's results; default the trainer's `log_every_n_steps`.
    """

    watches_numbers = True
    """The monitor need not watch the numbers too."""

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self._watch, self._begun = FiniteWatch(), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the checkpoint plugin in place before a checkpoint is read or written."""
        write_whole(trainer)
        self._watch, self._begun = FiniteWatch(), False
        # This callback runs first, so no other callback has removed the objects that the end of a training needs.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [self, *(one for one in callbacks if one is not self)]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is a step to train."""
        self._begun = True
        if trainer.is_global_zero:
            _ended(trainer).unlink(missing_ok=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check the gradient, unless a loss scaler checks it and skips the step itself."""
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            parameters = [value for group in optimizer.param_groups for value in group["params"]]
            self._watch.gradient(parameters, batch=trainer.fit_loop.total_batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss, and read the results of the checks when due."""
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
        """Keep NaN out of the export, which follows the last epoch."""
        self._require_finite(trainer, pl_module, thorough=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the process that had ended before, if there is one."""
        name_ended(trainer, exception)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end of a training, if an earlier process trained the last step without writing it."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        cut_off = not self._begun and trainer.ckpt_path is not None and not _ended(trainer).is_file()
        if trainer.strategy.broadcast(cut_off):
            self._require_finite(trainer, pl_module, thorough=True)
            log.warning("The training was complete, but its end was missing. It is written now")
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
    """Return the path of the file that marks a finished training."""
    return Path(trainer.default_root_dir) / ".training_ended"


def _trained(module: nn.Module) -> list[Tensor]:
    return [value for value in module.parameters() if value.requires_grad]


def _keys(batch: Any) -> Sequence[str]:
    found = batch.get("key") if isinstance(batch, Mapping) else None
    return [str(key) for key in found] if isinstance(found, (list, tuple)) else []


def _remedy(trainer: Any, fault: NumberFault) -> str:
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    words = f"train again with a lower learning rate (it is {max(rates):.3g})" if rates else "lower the learning rate"
    if "16" in str(trainer.precision):
        words += ", or in full precision (--trainer.precision 32-true)"
    if fault.keys:
        words += ", and check the samples of that batch"
    good = _last_checkpoint(trainer)
    if good is None:
        return f"{words}; there is no earlier checkpoint"
    config = Path(trainer.default_root_dir) / "config.yaml"
    command = ["memtrain", "train", "--config", str(config), "--ckpt_path", good]
    if "16" in str(trainer.precision):
        command += ["--trainer.precision", "32-true"]
    return f"{words}; to continue from the last good checkpoint with its learning rate: {shlex.join(command)}"


def _last_checkpoint(trainer: Any) -> str | None:
    """Return the newest file that the trainer's checkpoint callbacks wrote."""
    names = ("last_model_path", "best_model_path")
    paths = [Path(path) for one in trainer.checkpoint_callbacks for name in names if (path := getattr(one, name, None))]
    there = [path for path in paths if path.is_file()]
    return str(max(there, key=lambda path: path.stat().st_mtime)) if there else None
