"""The host of the engine: the interface to a trainer of any kind or to a hand-written loop.

The defaults fit a plain PyTorch loop, on one process or on several processes of torch.distributed. Adapters override
the methods that their trainer knows better. They are :class:`memtrain.callbacks.lightning_host.LightningHost` for both
Lightning packages and :mod:`memtrain.guard` for loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from memtrain.families.table import FamilyIndex
from memtrain.monitoring import processes
from memtrain.monitoring.batch_fields import BatchNames


@dataclass(frozen=True)
class Plan:
    """The planned length of a run.

    Attributes:
        max_steps: largest number of optimizer steps; -1 for no limit.
        max_epochs: largest number of epochs; -1 or None for no limit.
        batches_per_epoch: number of batches in an epoch.
        accumulate: number of batches per optimizer step.
        batches_of_data: number of batches in all the data, if an epoch is limited to fewer.
    """

    max_steps: int
    max_epochs: int | None
    batches_per_epoch: int
    accumulate: int = 1
    batches_of_data: int | None = None


class Host:
    """The host of one run.

    Args:
        module: the trained module. It may offer `sample_loss`, `loss_weight`, `unconditional_text` and `tokenizer`.
        data: the training data, with optional attributes (:mod:`memtrain.monitoring.data_protocol`). None if unknown.
        folder: the run folder.

    Attributes:
        names: function that names the samples of a batch.
    """

    captions: Mapping[str, str] = MappingProxyType({})
    """Captions by key, if the data do not know them."""
    noise_scheduler: Any = None
    """Diffusers' scheduler of the training noise, if the host hands its losses over."""
    watches_numbers: bool = False
    """Whether the host itself ends training when its numbers are not finite."""
    saves_alone: bool = False
    """Whether the first process may write checkpoints without the other processes."""
    exports: bool = False
    """Whether a callback saves the trained weights with every mitigation's `exporting`."""

    def __init__(self, module: Any, *, data: Any = None, folder: str | Path = ".") -> None:
        self.module, self.data, self.folder = module, data, Path(folder)
        self.names = BatchNames()
        self._families: FamilyIndex | None = None

    @property
    def families(self) -> FamilyIndex | None:
        """The families of pictures and captions, as set or else from the data; None without a scan."""
        return getattr(self.data, "families", None) if self._families is None else self._families

    @families.setter
    def families(self, value: FamilyIndex | None) -> None:
        self._families = value

    # Where the run stands

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        return 0

    @property
    def epoch(self) -> int:
        """Number of epochs finished so far."""
        return 0

    @property
    def plan(self) -> Plan | None:
        """The planned length of the run; None if unknown."""
        return None

    @property
    def restored(self) -> bool:
        """Whether a checkpoint was loaded into the module before training began."""
        return False

    @property
    def checkpoint(self) -> str | Path | None:
        """The checkpoint that the run goes on from; None for a new run, or if unknown."""
        return None

    @property
    def loss_scale(self) -> float | Tensor:
        """Factor between the batch-mean loss and the differentiated loss; a tensor if it is on the device."""
        return 1.0

    @property
    def device(self) -> torch.device:
        """The device of the module."""
        own = getattr(self.module, "device", None)
        return own if isinstance(own, torch.device) else next(self.module.parameters()).device

    # Processes

    @property
    def rank(self) -> int:
        """The number of this process among all processes."""
        return torch.distributed.get_rank() if processes.several() else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return torch.distributed.get_world_size() if processes.several() else 1

    def gather(self, rows: list[Any]) -> list[Any]:
        """Return the rows of every process in the order of ranks."""
        return processes.gather(rows)

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process."""
        return processes.broadcast(value)

    def barrier(self) -> None:
        """Wait for every process."""
        processes.barrier()

    # Forwards outside of training steps

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context with the precision of a training forward."""
        return nullcontext()

    def differentiating(self) -> AbstractContextManager[Any]:
        """Return a context for gradients that do not belong to the host's own backward pass."""
        return nullcontext()

    def moved(self, batch: Any) -> Any:
        """Move a batch to the device as for a training step, without changes that are for training only."""
        return batch

    def log(self, values: Mapping[str, float | Tensor], *, batch_size: int) -> None:
        """Log figures of this batch with the host's own figures; by default they are not logged."""
