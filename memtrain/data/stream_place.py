"""Parts of a stream: whose they are, how far somebody has come, and what gives samples from there on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from memtrain.data.shard_reading import Raw


@dataclass(frozen=True)
class Share:
    """Which part of a stream somebody reads.

    Attributes:
        rank: of the process.
        processes: number of them.
        worker: of the process's loader.
        workers: number of them, 1 without loader processes.
    """

    rank: int = 0
    processes: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def part(self) -> int:
        """Its number among all."""
        return self.rank * self.workers + self.worker

    @property
    def parts(self) -> int:
        """How many there are."""
        return self.processes * self.workers


@dataclass(frozen=True)
class Place:
    """How far a worker has come in an epoch.

    Attributes:
        draws: samples that it drew.
        counts: samples in each of the shards that it finished.
        first: key of the first sample in its buffer, by which is seen whether shards hold what they held.
    """

    draws: int = 0
    counts: tuple[int, ...] = ()
    first: str = ""


class Drawn(Protocol):
    """What one worker draws in one epoch, from a place on."""

    @property
    def place(self) -> Place:
        """How far it has come."""

    def __iter__(self) -> Iterator[Raw]:
        """The samples."""


class Feed(Protocol):
    """A source of samples for each worker."""

    def drawn(self, epoch: int, share: Share, place: Place) -> Drawn:
        """What a worker draws from a place on."""
