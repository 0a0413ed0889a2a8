"""A Lightning trainer as the surroundings of the engine; `lightning.pytorch` and `pytorch_lightning` alike.

Nothing here names a class of either package: what is asked of the trainer, both have.
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
        module: that it trains.
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        super().__init__(module, data=_data(trainer), folder=trainer.default_root_dir)
        self.trainer = trainer
        self.watches_numbers = any(getattr(callback, "watches_numbers", False) for callback in trainer.callbacks)
        self.exports = any(isinstance(callback, PipelineExport) for callback in trainer.callbacks)

    @property
    def step(self) -> int:
        """Optimizer steps, as Lightning counts them."""
        return int(self.trainer.global_step)

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return int(self.trainer.current_epoch)

    @property
    def plan(self) -> Plan | None:
        """The trainer's limits; None where the length of the data is unknown."""
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
        """This process, of all."""
        return int(self.trainer.global_rank)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.trainer.world_size)

    def broadcast(self, value: Any) -> Any:
        """The value of the first process."""
        return self.trainer.strategy.broadcast(value)

    def barrier(self) -> None:
        """Wait for every process."""
        self.trainer.strategy.barrier()

    def forward_context(self) -> AbstractContextManager[Any]:
        """The precision of a training forward."""
        context: AbstractContextManager[Any] = self.trainer.precision_plugin.forward_context()
        return context

    def moved(self, batch: Any) -> Any:
        """A batch on the device as a training step would get it, through the hooks of the data module or the module.

        Meanwhile the trainer says that it validates: what a hook does in training alone, such as dropping captions, it
        does not do to samples that are measured.
        """
        stage = self.trainer.state.stage
        # Each package has an enumeration of its own.
        self.trainer.state.stage = type(stage).VALIDATING
        try:
            batch = self.trainer.precision_plugin.convert_input(batch)
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        finally:
            self.trainer.state.stage = stage

    def log(self, values: Mapping[str, float | Tensor], *, batch_size: int) -> None:
        """Through the module's own logging."""
        self.module.log_dict(dict(values), batch_size=batch_size)


def _data(trainer: Any) -> Any:
    """The data module, or the loaders that `fit` was given; None where the module makes its loaders itself."""
    module = getattr(trainer, "datamodule", None)
    if module is not None:
        return module
    loop = trainer.fit_loop
    train, validation = (getattr(part, "_data_source", None) for part in (loop, loop.epoch_loop.val_loop))
    given = [None if source is None or source.is_module() else source.instance for source in (train, validation)]
    return None if given[0] is None else LoaderData(*given)


def _length(loader: Any) -> int | None:
    """Batches of a loader, None if it does not know: that of a stream has a `__len__`, which raises."""
    try:
        return len(loader)
    except TypeError:
        return None


def _scale(trainer: Any) -> float | Tensor:
    """The gradient scaler's factor; a tensor where it is on the device, so that nothing waits for its value."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale
