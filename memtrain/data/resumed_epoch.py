"""The rest of an epoch when a run continues with another batch size, number of processes or list of samples.

A place in an epoch is a number of visits, not of batches. The order of an epoch's visits does not depend on the batches
and processes that they are dealt out to. After b batches of B on R processes, the first b·B·R visits are done. So the
rest is known and is cut into new batches. Each remaining visit is made once, except for the last visits that fill no
batch, which every epoch leaves out. With several shapes, each shape is a stream of visits of its own
(:mod:`memtrain.data.bucket_sampler`), which continues where it stopped.

Lightning counts batches. :func:`recount` changes its counters in a checkpoint, before Lightning reads them, so that the
epoch ends when the rest is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rest:
    """The rest of an epoch, in the order of its visits.

    Attributes:
        epoch: the number of the epoch.
        batches: the finished batches of the epoch, in the trainer's count, at the start of this rest.
        positions: the positions in the dataset, over all processes.
    """

    epoch: int
    batches: int
    positions: Tensor

    def own(self, *, batches: int, batch_size: int, rank: int, processes: int) -> list[int]:
        """Return the positions that a process still has to visit after a number of batches of the epoch."""
        whole = len(self.positions) // processes * processes
        mine = self.positions[:whole][rank::processes]
        return [int(position) for position in mine[(batches - self.batches) * batch_size :]]

    def after(self, batches: int, *, size: int) -> Tensor:
        """Return the rest after a number of batches of the epoch, with `size` visits each over all processes."""
        return self.positions[(batches - self.batches) * size :]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"epoch": self.epoch, "batches": self.batches, "positions": self.positions}


@dataclass(frozen=True)
class Streams:
    """The places of streams of visits at a change of the batch size.

    Attributes:
        epoch: the number of the epoch.
        batches: the finished batches of the epoch, in the trainer's count.
        left: the number of visits that the epoch had left.
        slots: the number of finished visits of each stream.
    """

    epoch: int = 0
    batches: int = 0
    left: int = 0
    slots: Sequence[int] = ()

    def number(self, epoch: int, batches: int, *, size: int, per_epoch: int) -> int:
        """Return the number of a batch, counted from this change."""
        if epoch <= self.epoch:
            return batches - self.batches
        return self.left // size + (epoch - self.epoch - 1) * per_epoch + batches

    def left_after(self, epoch: int, batches: int, *, size: int, visits: int) -> int:
        """Return the number of visits that an epoch has left after a number of its batches."""
        if epoch == self.epoch:
            return self.left - (batches - self.batches) * size
        return visits - batches * size

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"epoch": self.epoch, "batches": self.batches, "left": self.left, "slots": list(self.slots)}


@dataclass(frozen=True)
class Place:
    """The place of the trainer that wrote a checkpoint.

    Attributes:
        epoch: the epoch of its batch counters.
        batches: the finished batches of that epoch.
        finished: whether these are all batches.
    """

    epoch: int
    batches: int
    finished: bool

    @staticmethod
    def of(loops: Mapping[str, Any], *, batches_per_epoch: int) -> Place:
        """Read the place from Lightning's counters.

        Args:
            loops: `fit_loop` of a checkpoint's `loops`.
            batches_per_epoch: the batches per epoch when the checkpoint was written.
        """
        done = int(loops["epoch_loop.batch_progress"]["current"]["ready"])
        epoch = int(loops["epoch_progress"]["current"]["started"]) - 1
        return Place(max(0, epoch), done, done >= batches_per_epoch)


def limited(batches: int, limit: int | float) -> int:
    """Return the batches of an epoch under `limit_train_batches`, as Lightning counts them."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def recount(loops: Mapping[str, Any], *, by: int, last: bool) -> None:
    """Change the counters of this epoch's batches; the counters of all epochs stay as they are.

    Args:
        loops: `fit_loop` of a checkpoint's `loops`, changed in place.
        by: the number of further batches that are done.
        last: whether the epoch has nothing left.
    """
    progress = loops["epoch_loop.batch_progress"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] = max(0, progress["current"][name] + by)
    progress["is_last_batch"] = progress["is_last_batch"] or last


def order_of(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch's visits, as :class:`torch.utils.data.DistributedSampler` shuffles them."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
