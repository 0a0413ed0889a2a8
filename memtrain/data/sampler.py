"""A distributed sampler and a loader that continue in the middle of an epoch.

The order is a function of (seed, epoch) alone. The place in a run is two numbers, the same on every process, so rank
0's checkpoint is enough to resume exactly. The numbers are not kept here: the trainer counts epochs and batches, and
saves and restores both counts. A run that continues with other batches is given the rest of the epoch
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
    """A :class:`torch.utils.data.DistributedSampler` that leaves out the samples that an epoch has already seen.

    If visits of one sample differ (`dataset.varies`), the sampler yields visits of the epoch instead of numbers.

    Args:
        dataset: the sampled dataset.
        num_replicas: the number of processes.
        rank: the number of this process.
        seed: the seed of the order.
        place: the function that returns the current epoch and the number of finished samples *per process* in it. It is
            called when an iteration begins. By default the epoch is that of `set_epoch`, from its start. (After some
            checkpoints Lightning 2.6 passes `set_epoch` another epoch than the trainer is in.)

    Attributes:
        rest: the rest of an epoch that was begun with other batches; None if there is no such epoch.
        batch_size: the batch size of a process, in which `rest` counts finished batches.
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
    """The same visits in every epoch, in fixed order, continued where an epoch stopped; for `overfit_batches`.

    Args:
        dataset: the sampled dataset.
        batch_size: the batch size of the process.
        place: the same as for :class:`ResumableDistributedSampler`.
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
    """A loader that begins to work when the first batch is needed, not when `iter` is called.

    Lightning calls `iter` before its restored counters are final. Worker processes would by then have loaded batches
    of another epoch. `state_dict` and `load_state_dict` tell Lightning that resuming in the middle of an epoch is
    exact. They store nothing.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the trainer's counters hold the place."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the trainer's counters hold the place."""


def fitting_batch(batch_size: int, visits: int) -> int:
    """Return a batch size that the visits fill.

    Args:
        batch_size: the batch size of the settings.
        visits: the number of visits of a process per epoch.

    Raises:
        ConfigurationError: if there is no visit.
    """
    if not visits:
        raise ConfigurationError(
            "There is nothing to train on: every sample is excluded or held out, or there are fewer samples than "
            "processes",
            expected="at least one sample per process",
            remedy="change data.init_args.exclude or data.init_args.heldout_fraction, or add images",
        )
    if visits < batch_size:
        log.warning("Batches hold %d sample(s) instead of %d, because an epoch has no more", visits, batch_size)
    return min(batch_size, visits)
