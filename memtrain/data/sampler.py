"""A distributed sampler and a loader that continue in the middle of an epoch.

The order is a function of (seed, epoch) alone, so the place in a run is two numbers, the same on every rank, and rank
0's checkpoint is enough to resume exactly. They are not kept here: the trainer counts epochs and batches, and saves
and restores both. Where a run continues with other batches, what is left of the epoch is given
(:mod:`memtrain.data.resumed_epoch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from memtrain.data.dataset import Visit
from memtrain.data.resumed_epoch import Rest
from memtrain.errors import ConfigurationError

log = logging.getLogger(__name__)


class ResumableDistributedSampler(DistributedSampler[Any]):
    """:class:`torch.utils.data.DistributedSampler` that leaves out the samples that an epoch has already seen.

    Where visits of one sample differ (`dataset.varies`), it yields visits of the epoch in place of numbers.

    Args:
        dataset: what is sampled.
        num_replicas: number of processes.
        rank: this process.
        seed: of the order.
        place: gives the current epoch and the samples *per rank* that are done in it; asked when an iteration begins.
            By default the epoch is that of `set_epoch`, from its start. (After some checkpoints Lightning 2.6 hands
            `set_epoch` another epoch than the trainer is in.)

    Attributes:
        rest: what is left of an epoch that was begun in other batches; None if there is no such epoch.
        batch_size: of a process, in which `rest` counts what is done.
    """

    rest: Rest | None = None
    batch_size: int = 1

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        num_replicas: int,
        rank: int,
        seed: int,
        place: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=False)
        self.place = place

    def __iter__(self) -> Iterator[int | Visit]:
        done = 0
        if self.place is not None:
            self.epoch, done = self.place()
        rest: Iterator[int] = islice(super().__iter__(), done, None)
        if self.rest is not None and self.rest.epoch == self.epoch:
            batches = done // self.batch_size
            rest = iter(
                self.rest.own(batches=batches, batch_size=self.batch_size, rank=self.rank, processes=self.num_replicas)
            )
        if getattr(self.dataset, "varies", False):
            yield from (Visit(position, self.epoch) for position in rest)
        else:
            yield from rest


class InOrder(SequentialSampler):
    """The same visits in every epoch, in fixed order, continued where an epoch stopped: for `overfit_batches`.

    Args:
        dataset: what is sampled.
        batch_size: of the process.
        place: as of :class:`ResumableDistributedSampler`.
    """

    rest: Rest | None = None

    def __init__(self, dataset: Any, *, batch_size: int, place: Callable[[], tuple[int, int]]) -> None:
        super().__init__(dataset)
        self.dataset, self.batch_size, self.place = dataset, batch_size, place

    def __iter__(self) -> Iterator[Any]:
        epoch, done = self.place()
        positions: Any = range(done, len(self.dataset))
        if self.rest is not None and self.rest.epoch == epoch:
            batches = done // self.batch_size
            positions = self.rest.own(batches=batches, batch_size=self.batch_size, rank=0, processes=1)
        varies = getattr(self.dataset, "varies", False)
        for position in positions:
            yield Visit(position, epoch) if varies else position


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader that begins to work when the first batch is asked for, not when `iter` is called.

    Lightning calls `iter` before its restored counters are final; worker processes would by then have loaded batches
    of another epoch. `state_dict` and `load_state_dict` tell Lightning that resuming in the middle of an epoch is
    exact; there is nothing to store.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place is known from the trainer's counters."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take up."""


def fitting_batch(batch_size: int, visits: int) -> int:
    """A batch size that as many visits fill.

    Args:
        batch_size: that was asked for.
        visits: of a process per epoch.

    Raises:
        ConfigurationError: if there is no visit.
    """
    if not visits:
        raise ConfigurationError(
            "There is nothing to train on: every sample is excluded or held out, or there are fewer than processes",
            expected="at least one sample per process",
            remedy="change exclude and heldout_fraction, or add images",
        )
    if visits < batch_size:
        log.warning("Batches hold %d sample(s) instead of %d, because an epoch has no more", visits, batch_size)
    return min(batch_size, visits)
