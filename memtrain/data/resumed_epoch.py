"""What is left of an epoch when a run continues with another batch size, number of processes or list of samples.

What: a place in an epoch is a number of visits, not of batches. The order of an epoch's visits does not depend on how
they are cut into batches and dealt out: after b batches of B on R processes its first b·B·R visits are done. So what is
left is known, and is cut anew; each of these visits is made once (but for those that fill no batch, which are left out
at the end of every epoch). Where images have several shapes, each shape is a stream of visits of its own
(:mod:`memtrain.data.bucket_sampler`), and continues where it stopped.

Lightning counts batches. :func:`recount` moves its counters, as a checkpoint holds them and before they are taken up,
so that the epoch ends when what is left is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rest:
    """What is left of an epoch, in the order in which it is visited.

    Attributes:
        epoch: number of the epoch.
        batches: done in it, as the trainer counts them, when this began.
        positions: of the dataset, over all processes.
    """

    epoch: int
    batches: int
    positions: Tensor

    def own(self, *, batches: int, batch_size: int, rank: int, processes: int) -> list[int]:
        """What a process has still to visit after so many batches of the epoch."""
        whole = len(self.positions) // processes * processes
        mine = self.positions[:whole][rank::processes]
        return [int(position) for position in mine[(batches - self.batches) * batch_size :]]

    def after(self, batches: int, *, size: int) -> Tensor:
        """What is left after so many batches of the epoch, of `size` visits over all processes."""
        return self.positions[(batches - self.batches) * size :]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"epoch": self.epoch, "batches": self.batches, "positions": self.positions}


@dataclass(frozen=True)
class Streams:
    """Where streams of visits stood when their batches became of another size.

    Attributes:
        epoch: number of the epoch.
        batches: done in it, as the trainer counts them.
        left: visits that the epoch had left.
        slots: visits done of each stream.
    """

    epoch: int = 0
    batches: int = 0
    left: int = 0
    slots: Sequence[int] = ()

    def number(self, epoch: int, batches: int, *, size: int, per_epoch: int) -> int:
        """Number of a batch, counted from here."""
        if epoch <= self.epoch:
            return batches - self.batches
        return self.left // size + (epoch - self.epoch - 1) * per_epoch + batches

    def left_after(self, epoch: int, batches: int, *, size: int, visits: int) -> int:
        """Visits that an epoch has left after so many batches of it."""
        if epoch == self.epoch:
            return self.left - (batches - self.batches) * size
        return visits - batches * size

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"epoch": self.epoch, "batches": self.batches, "left": self.left, "slots": list(self.slots)}


@dataclass(frozen=True)
class Place:
    """Where the trainer stood that wrote a checkpoint.

    Attributes:
        epoch: that its counters of batches belong to.
        batches: done in it.
        finished: whether that was all of them.
    """

    epoch: int
    batches: int
    finished: bool

    @staticmethod
    def of(loops: Mapping[str, Any], *, batches_per_epoch: int) -> Place:
        """The place of Lightning's counters.

        Args:
            loops: `fit_loop` of a checkpoint's `loops`.
            batches_per_epoch: when the checkpoint was written.
        """
        done = int(loops["epoch_loop.batch_progress"]["current"]["ready"])
        epoch = int(loops["epoch_progress"]["current"]["started"]) - 1
        return Place(max(0, epoch), done, done >= batches_per_epoch)


def limited(batches: int, limit: int | float) -> int:
    """Batches of an epoch under `limit_train_batches`, as Lightning counts them."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def recount(loops: Mapping[str, Any], *, by: int, last: bool) -> None:
    """Move the counters of the batches of this epoch; those of all epochs stay as they are.

    Args:
        loops: `fit_loop` of a checkpoint's `loops`, changed in place.
        by: how many batches more are done.
        last: whether nothing of the epoch is left.
    """
    progress = loops["epoch_loop.batch_progress"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] = max(0, progress["current"][name] + by)
    progress["is_last_batch"] = progress["is_last_batch"] or last


def order_of(count: int, *, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's visits, as :class:`torch.utils.data.DistributedSampler` shuffles them."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
