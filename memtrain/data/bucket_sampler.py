"""The order of visits where images have several shapes: every batch is of one shape, on all processes at once.

What: the visits of one shape follow each other in an endless stream, one random order of all of them after another. A
batch of all processes takes the next stretch of one stream. A round is what becomes complete of the streams while each
is gone through once; its batches come in random order. An epoch is as many batches as the visits of all shapes fill,
taken from the rounds where the epoch before stopped. So no visit is left out for good, however the shapes are filled:
those that an epoch does not reach come first in the next, and in the long run all have the same number.
Everything is a function of (seed, number of the batch), and the number follows from the epoch and the batches done in
it: a run is resumed exactly. Where it continues in batches of another size, each stream goes on where it stopped, and
the rounds begin anew there.
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
        shapes: of each visit.
        size: visits of a batch, of all processes together.
        seed: of the order.
        done: visits of each stream that were made before in batches of another size; default none.
    """

    def __init__(self, shapes: Sequence[Shape], *, size: int, seed: int, done: Sequence[int] = ()) -> None:
        self.streams = list(rows_by_shape(shapes).values())
        self.done = list(done) or [0] * len(self.streams)
        self.size, self.seed, self.visits = size, seed, len(shapes)
        self._order = lru_cache(maxsize=4)(self._new_order)
        self._round = lru_cache(maxsize=2)(self._new_round)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that as many visits fill."""
        return self.visits // self.size

    def batch(self, number: int) -> list[Visit]:
        """The visits of the batch of this number since the start of training.

        A visit's epoch says how often its image was gone through before.
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
        """Visits of each stream that were made before the batch of this number."""
        turn = self._turn(number)
        batches = [turn * len(stream) // self.size for stream in self.streams]
        for stream, _ in self._round(turn)[: number - self._before(turn)]:
            batches[stream] += 1
        return [done + count * self.size for done, count in zip(self.done, batches, strict=True)]

    def _turn(self, number: int) -> int:
        """The round that a batch is in."""
        turn = number * self.size // self.visits
        while self._before(turn + 1) <= number:
            turn += 1
        return turn

    def _before(self, turn: int) -> int:
        """Batches of all rounds before this one."""
        return sum(turn * len(stream) // self.size for stream in self.streams)

    def _new_round(self, turn: int) -> list[tuple[int, int]]:
        """Stream, and which of its batches, of a round."""
        batches = [
            (number, place)
            for number, stream in enumerate(self.streams)
            for place in range(turn * len(stream) // self.size, (turn + 1) * len(stream) // self.size)
        ]
        order = [batches[place][0] for place in self._shuffled(len(batches), "round", turn)]
        # Each stream's in its own order: so what is done of it is always its beginning.
        left = {number: iter([place for one, place in batches if one == number]) for number in set(order)}
        return [(number, next(left[number])) for number in order]

    def _new_order(self, stream: int, time: int) -> list[int]:
        return self._shuffled(len(self.streams[stream]), stream, time)

    def _shuffled(self, count: int, *names: object) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, *names))
        return torch.randperm(count, generator=generator).tolist()


class BucketSampler(DistributedSampler[Any]):
    """The visits of this process, batch after batch: each `batch_size` of them are of one shape.

    It is a DistributedSampler so that Lightning leaves it as it is.

    Args:
        dataset: what is sampled.
        num_replicas: number of processes.
        rank: this process.
        batch_size: visits of a batch of one process.
        seed: of the order.
        place: as of :class:`memtrain.data.sampler.ResumableDistributedSampler`.

    Attributes:
        streams: where they stood when their batches became of this size.
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
        """Go on where streams stood."""
        self.streams = streams
        self.plan = BatchPlan(self.shapes, size=self.plan.size, seed=self.plan.seed, done=streams.slots)

    def number(self, epoch: int, batches: int) -> int:
        """Number of the batch in the plan that comes after so many of an epoch."""
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
