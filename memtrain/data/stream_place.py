"""Parts of a stream: the worker of a part, the place that it has reached, and the samples from there on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from memtrain.data.shard_reading import Raw


@dataclass(frozen=True)
class Share:
    """The part of a stream that a worker reads.

    Attributes:
        rank: the number of the process.
        processes: the number of processes.
        worker: the number of the process's loader worker.
        workers: the number of loader workers, 1 without loader processes.
    """

    rank: int = 0
    processes: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def part(self) -> int:
        """The number of this part among all parts."""
        return self.rank * self.workers + self.worker

    @property
    def parts(self) -> int:
        """The number of all parts."""
        return self.processes * self.workers


@dataclass(frozen=True)
class Place:
    """The place that a worker has reached in an epoch.

    Attributes:
        draws: the number of samples that it drew.
        counts: the number of samples in each of the shards that it finished.
        first: the key of the first sample in its buffer, which shows whether the shards still hold the same samples.
    """

    draws: int = 0
    counts: tuple[int, ...] = ()
    first: str = ""


class Drawn(Protocol):
    """The samples that one worker draws in one epoch, from a place on."""

    @property
    def place(self) -> Place:
        """The place that the worker has reached."""

    def __iter__(self) -> Iterator[Raw]:
        """Yield the samples."""


class Feed(Protocol):
    """A source of samples for each worker."""

    def drawn(self, epoch: int, share: Share, place: Place) -> Drawn:
        """Return what a worker draws from a place on."""
