"""A Lightning trainer as the host of the engine, for `lightning.pytorch` and `pytorch_lightning`.

This module names no class of either package. It uses only attributes that the trainers of both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.monitoring.host import Host, Plan
from memtrain.monitoring.loader_data import LoaderData


class LightningHost(Host):
    """A trainer and its module.

    Args:
        trainer: the trainer.
        module: the module that the trainer trains.
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        super().__init__(module, data=_data(trainer), folder=trainer.default_root_dir)
        self.trainer = trainer
        self.watches_numbers = any(getattr(callback, "watches_numbers", False) for callback in trainer.callbacks)
        self.exports = any(isinstance(callback, PipelineExport) for callback in trainer.callbacks)

    @property
    def step(self) -> int:
        """Number of optimizer steps, as Lightning counts them."""
        return int(self.trainer.global_step)

    @property
    def epoch(self) -> int:
        """Number of epochs finished so far."""
        return int(self.trainer.current_epoch)

    @property
    def plan(self) -> Plan | None:
        """The trainer's limits; None if the length of the data is unknown."""
        batches, loader = self.trainer.num_training_batches, self.trainer.train_dataloader
        if batches == float("inf") or batches < 1:
            return None
        return Plan(
            max_steps=self.trainer.max_steps,
            max_epochs=self.trainer.max_epochs,
            batches_per_epoch=int(batches),
            accumulate=self.trainer.accumulate_grad_batches,
            batches_of_data=_length(loader),
        )

    @property
    def restored(self) -> bool:
        """Whether a checkpoint was loaded before `on_fit_start`."""
        return self.trainer.ckpt_path is not None and not self.trainer.strategy.restore_checkpoint_after_setup

    @property
    def checkpoint(self) -> str | None:
        """The trainer's `ckpt_path`."""
        path = self.trainer.ckpt_path
        return None if path is None else str(path)

    @property
    def loss_scale(self) -> float | Tensor:
        """The gradient scaler's factor over the number of accumulated batches."""
        return _scale(self.trainer) / self.trainer.accumulate_grad_batches

    @property
    def rank(self) -> int:
        """The number of this process among all processes."""
        return int(self.trainer.global_rank)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.trainer.world_size)

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process."""
        return self.trainer.strategy.broadcast(value)

    def barrier(self) -> None:
        """Wait for every process."""
        self.trainer.strategy.barrier()

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context with the precision of a training forward."""
        context: AbstractContextManager[Any] = self.trainer.precision_plugin.forward_context()
        return context

    def moved(self, batch: Any) -> Any:
        """Move a batch to the device with the hooks of the data module or the module, as for a training step.

        Meanwhile the trainer says that it validates, so hooks skip their work for training only, such as dropping
        captions.
        """
        stage = self.trainer.state.stage
        # Each package has its own enumeration.
        self.trainer.state.stage = type(stage).VALIDATING
        try:
            batch = self.trainer.precision_plugin.convert_input(batch)
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        finally:
            self.trainer.state.stage = stage

    def log(self, values: Mapping[str, float | Tensor], *, batch_size: int) -> None:
        """Log values through the module."""
        self.module.log_dict(dict(values), batch_size=batch_size)


def _data(trainer: Any) -> Any:
    """Return the data module, or the loaders given to `fit`; None if the module makes its loaders itself."""
    module = getattr(trainer, "datamodule", None)
    if module is not None:
        return module
    loop = trainer.fit_loop
    train, validation = (getattr(part, "_data_source", None) for part in (loop, loop.epoch_loop.val_loop))
    given = [None if source is None or source.is_module() else source.instance for source in (train, validation)]
    return None if given[0] is None else LoaderData(*given)


def _length(loader: Any) -> int | None:
    """Return the number of batches of a loader; None if unknown, as `__len__` of a stream raises."""
    try:
        return len(loader)
    except TypeError:
        return None


def _scale(trainer: Any) -> float | Tensor:
    """Return the factor of the gradient scaler, as a tensor if it is on the device, so that nothing waits for it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale
