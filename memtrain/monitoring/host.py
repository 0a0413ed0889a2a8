"""What the engine asks of its surroundings: a trainer of any kind, or a loop written by hand.

The defaults are those of a plain PyTorch loop, on one process or on several that torch.distributed knows of. An adapter
overrides what its trainer knows better: :class:`memtrain.callbacks.lightning_host.LightningHost` for both Lightning
packages, :mod:`memtrain.guard` for loops.
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
    """How long a run is planned to be.

    Attributes:
        max_steps: optimizer steps; -1 for no limit.
        max_epochs: epochs; -1 or None for no limit.
        batches_per_epoch: batches that an epoch trains on.
        accumulate: batches per optimizer step.
        batches_of_data: batches that all the data fill, where an epoch is limited to fewer.
    """

    max_steps: int
    max_epochs: int | None
    batches_per_epoch: int
    accumulate: int = 1
    batches_of_data: int | None = None


class Host:
    """The surroundings of one run.

    Args:
        module: what is trained. It may offer `sample_loss`, `loss_weight`, `unconditional_text` and `tokenizer`.
        data: what it is trained on; :mod:`memtrain.monitoring.data_protocol` says what it may offer. None if unknown.
        folder: of the run.

    Attributes:
        names: names the samples of a batch.
    """

    captions: Mapping[str, str] = MappingProxyType({})
    """Captions by key, where the data does not know them."""
    noise_scheduler: Any = None
    """Diffusers' scheduler of the training noise, where the host hands its losses over."""
    watches_numbers: bool = False
    """Whether the host ends training by itself when its numbers are no longer finite."""
    saves_alone: bool = False
    """Whether checkpoints may be written by the first process without the others knowing."""
    exports: bool = False
    """Whether something saves the trained weights as every mitigation's `exporting` leaves them."""

    def __init__(self, module: Any, *, data: Any = None, folder: str | Path = ".") -> None:
        self.module, self.data, self.folder = module, data, Path(folder)
        self.names = BatchNames()
        self._families: FamilyIndex | None = None

    @property
    def families(self) -> FamilyIndex | None:
        """Which samples are one picture, and which share a caption: as set, else the data's; None: nobody looked."""
        return getattr(self.data, "families", None) if self._families is None else self._families

    @families.setter
    def families(self, value: FamilyIndex | None) -> None:
        self._families = value

    # Where the run stands

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return 0

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return 0

    @property
    def plan(self) -> Plan | None:
        """How long the run will be; None if nobody knows."""
        return None

    @property
    def restored(self) -> bool:
        """Whether a checkpoint was loaded into the module before training began."""
        return False

    @property
    def checkpoint(self) -> str | Path | None:
        """The file that the run goes on from; None if it is new, or nobody knows."""
        return None

    @property
    def loss_scale(self) -> float | Tensor:
        """Factor between the batch-mean loss and what is differentiated; a tensor where it is on the device."""
        return 1.0

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        own = getattr(self.module, "device", None)
        return own if isinstance(own, torch.device) else next(self.module.parameters()).device

    # Processes

    @property
    def rank(self) -> int:
        """This process, of all."""
        return torch.distributed.get_rank() if processes.several() else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return torch.distributed.get_world_size() if processes.several() else 1

    def gather(self, rows: list[Any]) -> list[Any]:
        """The rows of every process, in the order of ranks."""
        return processes.gather(rows)

    def broadcast(self, value: Any) -> Any:
        """The value of the first process."""
        return processes.broadcast(value)

    def barrier(self) -> None:
        """Wait for every process."""
        processes.barrier()

    # Forwards outside of training steps

    def forward_context(self) -> AbstractContextManager[Any]:
        """The precision of a training forward."""
        return nullcontext()

    def differentiating(self) -> AbstractContextManager[Any]:
        """Around gradients of what the host made of the denoiser's output, which are none of its own backward."""
        return nullcontext()

    def moved(self, batch: Any) -> Any:
        """A batch on the device, as a training step would get it, without what is done to batches in training alone."""
        return batch

    def log(self, values: Mapping[str, float | Tensor], *, batch_size: int) -> None:
        """Show figures of this batch wherever the host shows its own; default nowhere."""
