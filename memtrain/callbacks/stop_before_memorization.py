"""Stops training when a share of the pictures is memorized, and returns to earlier weights.

At each update, the monitor computes the share of training pictures flagged so far (the logged metric
`memorization/share`). When it passes `share`, training ends, and the module gets back weights that are at least `every`
steps older. The same holds for averaged weights (`ema_decay`). So the exported pipeline, the last validation and
`last.ckpt` belong to this earlier step, which the log names. A flag needs visits as evidence, so the weights of its own
step would be too late. Source: ours. It is early stopping by memorization instead of by a loss. Cost: the trained
weights (and their average) are written to `before_memorization/` in the run folder every `every` steps. Two such files
are kept, and none after a run that did not stop. Suggested for few pictures: `share: 0.1` and an `every` of a few
epochs. Suggested for large data: a share well above `false_positive_rate`, because this share is flagged by chance.
With :class:`memtrain.callbacks.sample_replacement.SampleReplacement` it rarely stops a run, because flagged samples are
not trained on any more. Cannot: restore the state of the optimizer, so a stopped run that is resumed stops again.
Checkpoints other than `last.ckpt` stay as they were saved. The callback is refused under strategies that shard the
weights (FSDP, DeepSpeed) and together with Lightning's WeightAveraging.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from memtrain.callbacks.base import Callback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError

log = logging.getLogger(__name__)

KEPT = 2
"""Number of files of earlier weights."""
AVERAGE = "average."
"""Name of a parameter's average in the files, before its number."""


class StopBeforeMemorization(Callback):
    """End training when too many pictures are memorized, with the weights of an earlier step.

    Args:
        share: largest share of the training pictures that may be flagged before training ends. With 1, it never ends
            early.
        every: number of optimizer steps between kept weights.

    Attributes:
        stopped: step at which training was stopped; None if it was not.
        restored: step of the weights at the end.

    Raises:
        ConfigurationError: if the share or the number of steps is out of range.
    """

    def __init__(self, share: float = 0.05, *, every: int = 50) -> None:
        if not 0 <= share <= 1:
            raise ConfigurationError(f"share={share}", expected="a share from 0 to 1", remedy="set share: 0.1")
        if every < 1:
            raise ConfigurationError(f"every={every}", expected="at least 1 step", remedy="raise it")
        self.share, self.every = share, every
        self.stopped: int | None = None
        self.restored: int | None = None
        self._monitor: MemorizationMonitor | None = None
        self._last_kept = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a missing monitor and strategies that do not fit, before any work is done."""
        if stage != "fit":
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, MemorizationMonitor)]
        if not monitors:
            raise ConfigurationError(
                "StopBeforeMemorization does not know the share of memorized pictures",
                expected="a MemorizationMonitor among the callbacks",
                remedy="add memtrain.callbacks.monitor.MemorizationMonitor to trainer.callbacks",
            )
        self._monitor = monitors[0]
        sharded = [word for word in ("FSDP", "DeepSpeed", "ModelParallel") if word in type(trainer.strategy).__name__]
        averaging = [type(one).__name__ for one in callbacks if hasattr(one, "_average_model")]
        for found in [*sharded, *averaging]:
            raise ConfigurationError(
                f"StopBeforeMemorization cannot restore weights together with {found}",
                expected="complete weights on every process, and their average in the module (`ema_decay`)",
                remedy="use Lightning's EarlyStopping with monitor=memorization/share",
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights from before training."""
        self.stopped = self.restored = None
        if trainer.is_global_zero and trainer.ckpt_path is None:
            for path in self._files(trainer):
                path.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights from the start of training or of the resumed run."""
        if trainer.is_global_zero:
            for path in self._files(trainer):
                if _step(path) > trainer.global_step:  # these steps will be repeated
                    path.unlink()
        self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if too many pictures are memorized, or else keep the weights when due."""
        if self.stopped is None and trainer.global_step != self._last_kept:
            if self._passed() and _may_stop(trainer):
                self._stop(trainer, pl_module)
            elif trainer.global_step % self.every == 0:
                self._keep(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of training, count the last batches before the export."""
        assert self._monitor is not None
        if self.stopped is None and _ends(trainer):
            self._monitor.engine.update()
            if self._passed():
                self._stop(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` with the final weights, and delete kept weights that are not needed."""
        if self.stopped is not None:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.save_last:
                    folder = Path(callback.dirpath or trainer.default_root_dir)
                    # The name is set first, because the checkpoint holds the name, and because the callback may save
                    # again.
                    callback.last_model_path = callback.last_model_path or str(folder / "last.ckpt")
                    trainer.save_checkpoint(callback.last_model_path)
        if trainer.is_global_zero:
            for path in self._files(trainer):
                if _step(path) != self.restored:
                    path.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the stop, for readers of the checkpoint."""
        return {"stopped": self.stopped, "restored": self.restored}

    def _passed(self) -> bool:
        assert self._monitor is not None
        return self._monitor.calibration.share_flagged() > self.share

    def _stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End training with the oldest kept weights."""
        assert self._monitor is not None
        self.stopped, trainer.should_stop = trainer.global_step, True
        kept: Any = None
        if trainer.is_global_zero:
            files = self._files(trainer)
            older = [path for path in files if _step(path) <= self.stopped - self.every] or files[:1]
            kept = (_step(older[-1]), load_file(older[-1]))
        self.restored, tensors = trainer.strategy.broadcast(kept)
        with torch.no_grad():
            for name, weight in _weights(pl_module).items():
                weight.copy_(tensors[name])
        if trainer.is_global_zero:
            log.warning(
                "Training stops at step %d, because %.0f %% of the training pictures are flagged as memorized "
                "(share=%g). It ends with the weights of step %d.",
                self.stopped,
                100 * self._monitor.calibration.share_flagged(),
                self.share,
                self.restored,
            )

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_kept = trainer.global_step
        if not trainer.is_global_zero:
            return
        folder = _folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{trainer.global_step:08d}.safetensors"
        if not path.is_file():
            unfinished = path.with_suffix(".unfinished")
            tensors = {name: weight.detach().cpu().contiguous().clone() for name, weight in _weights(pl_module).items()}
            save_file(tensors, unfinished)
            unfinished.rename(path)
        for old in self._files(trainer)[:-KEPT]:
            old.unlink()

    def _files(self, trainer: Trainer) -> list[Path]:
        return sorted(_folder(trainer).glob("step-*.safetensors"))


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "before_memorization"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _weights(module: LightningModule) -> dict[str, Tensor]:
    """Return the trainable weights, and their average if the module keeps one."""
    trained: dict[str, Tensor] = {name: one for name, one in module.named_parameters() if one.requires_grad}
    average = getattr(getattr(module, "ema", None), "shadow_params", [])
    return trained | {f"{AVERAGE}{number}": one for number, one in enumerate(average)}


def _may_stop(trainer: Trainer) -> bool:
    """Return whether the minimum of steps and epochs is reached; before it, Lightning goes on."""
    return trainer.global_step >= (trainer.min_steps or 0) and trainer.current_epoch >= (trainer.min_epochs or 0)


def _ends(trainer: Trainer) -> bool:
    """Whether this was the last epoch."""
    epochs = trainer.max_epochs
    done = epochs is not None and epochs >= 0 and trainer.current_epoch + 1 >= epochs
    return done or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
