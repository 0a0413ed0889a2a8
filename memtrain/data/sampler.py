"""A distributed sampler that continues in the middle of an epoch.

The order is a function of (seed, epoch) alone, so the position is one number, the same on every rank, and rank 0's
checkpoint is enough to resume exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Dataset, DistributedSampler


class ResumableDistributedSampler(DistributedSampler[int]):
    """:class:`torch.utils.data.DistributedSampler` that can skip the first samples of one epoch.

    Args:
        dataset: what is sampled.
        num_replicas: number of processes.
        rank: this process.
        seed: of the order.
        start: samples *per rank* that the first epoch to be iterated leaves out.
    """

    def __init__(self, dataset: Dataset, *, num_replicas: int, rank: int, seed: int, start: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=False)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        for position, index in enumerate(super().__iter__()):
            if position >= start:
                yield index
