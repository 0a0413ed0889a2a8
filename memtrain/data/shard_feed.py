"""The order of a stream of shards, and how it goes on in the middle.

The shards of an epoch are dealt out to all loader workers of all processes in turn, in an order that is drawn from
(seed, epoch). A worker reads its shards one after the other, and draws each next sample from those of a buffer with a
generator of (seed, epoch, process, worker). So the order is a function of these, of the list of shards and of what they
hold. With `endless`, a worker whose shards are through, and whose buffer is empty, begins them again in another order.

To go on in the middle, the draws are done again on paper: which samples the buffer held follows from the number of
samples in the shards that were finished, which the place says. Only shards of which samples are still in the buffer are
read again, without decoding, and the one at hand up to its place. This is exact if they hold what they held: of files
that is taken for granted, of what a command writes it cannot be known.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from memtrain.data.shard_reading import Raw, shard_samples
from memtrain.data.shard_urls import shard_name
from memtrain.data.stream_place import Place, Share
from memtrain.errors import DataError

log = logging.getLogger(__name__)
COMPARED = 50_000
"""Keys of a worker's first shard that those of its second are compared with."""


Entry = tuple[int, int]
"""A sample: the number of its shard in the worker's order, and its number in the shard."""


@dataclass(frozen=True)
class ShardFeed:
    """Gives each worker its samples.

    Args:
        urls: of the shards.
        seed: of the orders.
        buffer: samples among which the next one is drawn; below 2 nothing is shuffled.
        endless: begin again where the shards are through.
        keys: what names a sample (:func:`memtrain.data.shard_reading.shard_samples`).
        skip: go on with the next shard where one cannot be read to its end.
    """

    urls: Sequence[str]
    seed: int
    buffer: int
    endless: bool = False
    keys: str = "name"
    skip: bool = False

    @property
    def size(self) -> int:
        """Of the buffer, which holds the next sample at least."""
        return max(1, self.buffer)

    def shards(self, epoch: int, share: Share, turn: int = 0) -> list[str]:
        """A worker's shards, in the order in which it reads them the first time, or a later one."""
        every = list(self.urls)
        if self.buffer > 1:
            _generator("shards", self.seed, epoch).shuffle(every)
        own = every[share.part :: share.parts]
        if turn and self.buffer > 1:
            _generator("shards", self.seed, epoch, share.part, turn).shuffle(own)
        return own

    def drawn(self, epoch: int, share: Share, place: Place) -> ShardsDrawn:
        """What a worker draws from a place on."""
        return ShardsDrawn(self, epoch, share, place)


class ShardsDrawn:
    """What one worker draws of its shards.

    Args:
        feed: with all shards.
        epoch: of the order.
        share: which part it is.
        place: where it begins.
    """

    def __init__(self, feed: ShardFeed, epoch: int, share: Share, place: Place) -> None:
        self.feed, self.epoch, self.share, self.begin = feed, epoch, share, place
        self.own = feed.shards(epoch, share)
        self._turn, self._order = 0, self.own
        self._draws, self._counts = place.draws, list(place.counts)
        self._buffer: list[Raw] = []
        self._first: set[str] = set()

    @property
    def place(self) -> Place:
        """How far it has come."""
        return Place(self._draws, tuple(self._counts), self._buffer[0].key if self._buffer else "")

    def __iter__(self) -> Iterator[Raw]:
        share, feed = self.share, self.feed
        generator = _generator("samples", feed.seed, self.epoch, share.rank, share.worker)
        own = len(self.own)
        held, begun = on_paper(
            self._counts, self._draws, buffer=feed.size, own=own, endless=feed.endless, generator=generator
        )
        found, rest = self._read_again(held, begun)
        self._buffer = [found.pop(entry) for entry in held if entry in found]
        first = self._buffer[0].key if self._buffer else ""
        if len(self._buffer) < len(held) or first != self.begin.first:
            log.warning(
                "Shards that were read before the checkpoint hold other samples now (%d of %d are there, first %r "
                "instead of %r): the rest of this epoch is not what it would have been",
                len(self._buffer),
                len(held),
                first,
                self.begin.first,
            )
        while own:
            # Nobody comes a second time before everybody came: the buffer is emptied first.
            through = bool(held) and begun[1] == 0 and begun[0] % own == 0
            end = begun[0] if through and begun[0] else own * (begun[0] // own + 1)
            end = end if feed.endless else own
            following = self._following(begun, rest, end)
            while True:
                self._buffer.extend(islice(following, feed.size - len(self._buffer)))
                if not self._buffer:
                    break
                self._draws += 1
                yield _taken(self._buffer, generator)
            if not feed.endless:
                return
            held, begun, rest = [], (end, 0), None

    def _url(self, number: int) -> str:
        """The shard that is read in that turn."""
        turn, place = divmod(number, len(self.own))
        if turn != self._turn:
            self._turn, self._order = turn, self.feed.shards(self.epoch, self.share, turn)
        return self._order[place]

    def _read_again(self, held: Sequence[Entry], begun: Entry) -> tuple[dict[Entry, Raw], Iterator[Raw] | None]:
        """The samples that the buffer held, and what follows of the shard at hand."""
        wanted: dict[int, set[int]] = {begun[0]: set()} if begun[1] else {}
        for number, index in held:
            wanted.setdefault(number, set()).add(index)
        found: dict[Entry, Raw] = {}
        samples = None
        for number, indices in sorted(wanted.items()):
            until = begun[1] if number == begun[0] else max(indices) + 1
            samples = self._shard(self._url(number))
            for index, raw in enumerate(islice(samples, until)):
                if index in indices:
                    found[number, index] = raw
        return found, samples if begun[1] else None

    def _following(self, begun: Entry, rest: Iterator[Raw] | None, end: int) -> Iterator[Raw]:
        """The samples behind a place, up to a shard; the count of each shard that is finished is taken down."""
        good = 0
        del self._counts[begun[0] :]
        for number in range(begun[0], end):
            address = self._url(number)
            found = 0 if rest is None else begun[1]
            for raw in self._shard(address) if rest is None else rest:
                found, good = found + 1, good + (not raw.problem)
                self._compare(raw, number, address)
                yield raw
            rest = None
            self._counts.append(found)
        if not good and end - begun[0] == len(self.own) and self.feed.endless:
            raise DataError(
                f"None of the {len(self.own)} shards of a process or worker holds a sample that can be used, first "
                f"{shard_name(self.own[0])}",
                expected="shards with samples for each process and worker",
                remedy="mend the shards, or take fewer workers",
            )

    def _shard(self, address: str) -> Iterator[Raw]:
        try:
            yield from shard_samples(address, keys=self.feed.keys)
        except DataError as error:
            if not self.feed.skip:
                raise
            yield Raw("", shard=shard_name(address), problem=error.problem)

    def _compare(self, raw: Raw, number: int, address: str) -> None:
        """Refuse shards that each name their samples anew: of the first shard and the second, keys are compared."""
        if not raw.key or number > 1 or self.feed.keys != "name":
            return
        if number == 0:
            if len(self._first) < COMPARED:
                self._first.add(raw.key)
        elif raw.key in self._first and address != self.own[0]:
            raise DataError(
                f"The key {raw.key!r:.100} in {shard_name(address)} is in {shard_name(self.own[0])}, too",
                expected="one key per sample: records, flags and the held-out split go by it",
                remedy="say keys: shard, so that the name of the shard becomes a part of each key",
            )


def _generator(*words: object) -> random.Random:
    """One of its own for these words, the same on every machine."""
    return random.Random(" ".join(map(str, words)))  # noqa: S311 (an order, no secret)


def _taken(buffer: list[Any], generator: random.Random) -> Any:
    """One of a buffer, whose place the last one takes."""
    place = generator.randrange(len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


def on_paper(
    counts: Sequence[int], draws: int, *, buffer: int, own: int, endless: bool, generator: random.Random
) -> tuple[list[Entry], Entry]:
    """What a buffer holds after so many draws, and the next sample that goes into it.

    Args:
        counts: samples in each shard that was finished.
        draws: samples that were drawn.
        buffer: its size.
        own: number of shards.
        endless: whether they are begun again.
        generator: that draws, which is then where it was.
    """
    held: list[Entry] = []
    number, index, end = 0, 0, own

    def ahead() -> None:
        nonlocal number, index
        while number < min(len(counts), end) and index == counts[number]:
            number, index = number + 1, 0

    for _ in range(draws):
        ahead()
        while len(held) < buffer and (number < end or (endless and not held)):
            if number == end:
                end += own
            else:
                held.append((number, index))
                index += 1
            ahead()
        if held:
            _taken(held, generator)
    ahead()
    return held, (number, index)
