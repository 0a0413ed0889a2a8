"""The order of visits for images of several shapes: every batch has one shape, on all processes at once.

The visits of one shape form an endless stream, in which one random order of all visits follows another. A batch
of all processes takes the next visits of one stream. A round holds the batches that become complete while each stream
is gone through once, and these batches come in random order. An epoch has as many batches as the visits of all shapes
fill. It takes them from the rounds, starting where the epoch before stopped. So no visit is lost: visits that one epoch
does not reach come first in the next, and in the long run all visits are equally frequent. Everything is a function of
the seed and the number of the batch. The number follows from the epoch and the batches done in it, so a run resumes
exactly. A run that continues with another batch size goes on in each stream where it stopped, and new rounds begin
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from memtrain.data.dataset import CaptionedImages, Visit
from memtrain.data.framing import Shape, rows_by_shape
from memtrain.data.resumed_epoch import Streams
from memtrain.functional.keyed_draws import seed_of


class BatchPlan:
    """The batches of all processes.

    Args:
        shapes: the shape of each visit.
        size: the number of visits of a batch, of all processes together.
        seed: the seed of the order.
        done: the number of visits of each stream that were made before with another batch size; by default none.
    """

    def __init__(self, shapes: Sequence[Shape], *, size: int, seed: int, done: Sequence[int] = ()) -> None:
        self.streams = list(rows_by_shape(shapes).values())
        self.done = list(done) or [0] * len(self.streams)
        self.size, self.seed, self.visits = size, seed, len(shapes)
        self._order = lru_cache(maxsize=4)(self._new_order)
        self._round = lru_cache(maxsize=2)(self._new_round)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches that these visits fill."""
        return self.visits // self.size

    def batch(self, number: int) -> list[Visit]:
        """Return the visits of the batch with this number since the start of training.

        The epoch of a visit is the number of earlier passes through the stream.
        """
        turn = self._turn(number)
        stream, place = self._round(turn)[number - self._before(turn)]
        positions, visits = self.streams[stream], []
        first = self.done[stream] + place * self.size
        for slot in range(first, first + self.size):
            time, step = divmod(slot, len(positions))
            visits.append(Visit(positions[self._order(stream, time)[step]], time))
        return visits

    def done_before(self, number: int) -> list[int]:
        """Count the visits of each stream before the batch with this number."""
        turn = self._turn(number)
        batches = [turn * len(stream) // self.size for stream in self.streams]
        for stream, _ in self._round(turn)[: number - self._before(turn)]:
            batches[stream] += 1
        return [done + count * self.size for done, count in zip(self.done, batches, strict=True)]

    def _turn(self, number: int) -> int:
        """Return the round of a batch."""
        turn = number * self.size // self.visits
        while self._before(turn + 1) <= number:
            turn += 1
        return turn

    def _before(self, turn: int) -> int:
        """Count the batches of all rounds before this one."""
        return sum(turn * len(stream) // self.size for stream in self.streams)

    def _new_round(self, turn: int) -> list[tuple[int, int]]:
        """Return the batches of a round as pairs: the stream, and the number of the batch within it."""
        batches = [
            (number, place)
            for number, stream in enumerate(self.streams)
            for place in range(turn * len(stream) // self.size, (turn + 1) * len(stream) // self.size)
        ]
        order = [batches[place][0] for place in self._shuffled(len(batches), "round", turn)]
        # The batches of one stream keep their order, so the finished ones are always its beginning.
        left = {number: iter([place for one, place in batches if one == number]) for number in set(order)}
        return [(number, next(left[number])) for number in order]

    def _new_order(self, stream: int, time: int) -> list[int]:
        return self._shuffled(len(self.streams[stream]), stream, time)

    def _shuffled(self, count: int, *names: object) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, *names))
        return torch.randperm(count, generator=generator).tolist()


class BucketSampler(DistributedSampler[Any]):
    """The visits of this process, batch after batch. Each `batch_size` visits have one shape.

    The class is a DistributedSampler so that Lightning does not replace it.

    Args:
        dataset: the sampled dataset.
        num_replicas: the number of processes.
        rank: the number of this process.
        batch_size: the number of visits of a batch of one process.
        seed: the seed of the order.
        place: the same as for :class:`memtrain.data.sampler.ResumableDistributedSampler`.

    Attributes:
        streams: the places of the streams at the last change of the batch size.
    """

    def __init__(
        self,
        dataset: CaptionedImages,
        *,
        num_replicas: int,
        rank: int,
        batch_size: int,
        seed: int,
        place: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.shapes = dataset.shapes_of_visits()
        self.plan = BatchPlan(self.shapes, size=num_replicas * batch_size, seed=seed)
        self.streams: Streams | None = None
        self.batch_size, self.place = batch_size, place

    def continue_from(self, streams: Streams) -> None:
        """Go on at the given places of the streams."""
        self.streams = streams
        self.plan = BatchPlan(self.shapes, size=self.plan.size, seed=self.plan.seed, done=streams.slots)

    def number(self, epoch: int, batches: int) -> int:
        """Return the plan's number of the batch that follows `batches` batches of an epoch."""
        per_epoch = self.plan.batches_per_epoch
        if self.streams is None:
            return epoch * per_epoch + batches
        return self.streams.number(epoch, batches, size=self.plan.size, per_epoch=per_epoch)

    def __len__(self) -> int:
        return self.plan.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[Visit]:
        done = 0
        if self.place is not None:
            self.epoch, done = self.place()
        own = self.rank * self.batch_size
        for number in range(self.number(self.epoch, done // self.batch_size), self.number(self.epoch + 1, 0)):
            yield from self.plan.batch(number)[own : own + self.batch_size]
