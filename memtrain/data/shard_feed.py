"""The order of a stream of shards, and how it goes on in the middle.

The shards of an epoch are dealt out to all loader workers of all processes in turn, in an order that is drawn from
(seed, epoch). A worker reads its shards one after the other. It draws each next sample from a buffer with a generator
of (seed, epoch, process, worker). So the order is a function of these numbers, of the list of shards and of their
content. With `endless`, a worker that has read its shards and emptied its buffer begins the shards again in another
order.

To go on in the middle, the draws are repeated without reading. The place holds the numbers of samples in the finished
shards. They determine which samples the buffer held. Only shards with samples in the buffer are read again, without
decoding, and the current shard up to its place. This is exact if the shards hold what they held before. For files that
is assumed. For the output of a command it cannot be known.
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
"""The number of keys of a worker's first shard that are compared with the keys of its second."""


Entry = tuple[int, int]
"""A sample: the number of its shard in the worker's order, and its number in the shard."""


@dataclass(frozen=True)
class ShardFeed:
    """Gives each worker its samples.

    Args:
        urls: the addresses of the shards.
        seed: the seed of the orders.
        buffer: the number of samples from which the next one is drawn; below 2 nothing is shuffled.
        endless: whether to begin again after the last shard.
        keys: the rule for the names of samples (:func:`memtrain.data.shard_reading.shard_samples`).
        skip: whether to go on with the next shard when one cannot be read to its end.
    """

    urls: Sequence[str]
    seed: int
    buffer: int
    endless: bool = False
    keys: str = "name"
    skip: bool = False

    @property
    def size(self) -> int:
        """The size of the buffer, which holds at least the next sample."""
        return max(1, self.buffer)

    def shards(self, epoch: int, share: Share, turn: int = 0) -> list[str]:
        """Return a worker's shards in the order in which it reads them the first time, or a later time (`turn`)."""
        every = list(self.urls)
        if self.buffer > 1:
            _generator("shards", self.seed, epoch).shuffle(every)
        own = every[share.part :: share.parts]
        if turn and self.buffer > 1:
            _generator("shards", self.seed, epoch, share.part, turn).shuffle(own)
        return own

    def drawn(self, epoch: int, share: Share, place: Place) -> ShardsDrawn:
        """Return what a worker draws from a place on."""
        return ShardsDrawn(self, epoch, share, place)


class ShardsDrawn:
    """The samples that one worker draws from its shards.

    Args:
        feed: the feed with all shards.
        epoch: the epoch of the order.
        share: the worker's part of the stream.
        place: the place where the worker begins.
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
        """The place that the worker has reached."""
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
                "Shards that were read before the checkpoint now hold other samples (%d of %d are there, first %r "
                "instead of %r). The rest of this epoch differs from an uninterrupted run.",
                len(self._buffer),
                len(held),
                first,
                self.begin.first,
            )
        while own:
            # The buffer is emptied before a second pass, so no sample comes twice before all came once.
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
        """Return the shard with this number in the worker's order, over all passes."""
        turn, place = divmod(number, len(self.own))
        if turn != self._turn:
            self._turn, self._order = turn, self.feed.shards(self.epoch, self.share, turn)
        return self._order[place]

    def _read_again(self, held: Sequence[Entry], begun: Entry) -> tuple[dict[Entry, Raw], Iterator[Raw] | None]:
        """Return the samples that the buffer held, and the rest of the current shard."""
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
        """Yield the samples after a place, up to shard number `end`, and note the count of each finished shard."""
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
                f"None of the {len(self.own)} shards of a process or worker holds a usable sample, first "
                f"{shard_name(self.own[0])}",
                expected="shards with samples for each process and worker",
                remedy="repair the shards, or lower --data.init_args.num_workers",
            )

    def _shard(self, address: str) -> Iterator[Raw]:
        try:
            yield from shard_samples(address, keys=self.feed.keys)
        except DataError as error:
            if not self.feed.skip:
                raise
            yield Raw("", shard=shard_name(address), problem=error.problem)

    def _compare(self, raw: Raw, number: int, address: str) -> None:
        """Refuse shards that each number their samples from the start, by comparing keys of the first two shards."""
        if not raw.key or number > 1 or self.feed.keys != "name":
            return
        if number == 0:
            if len(self._first) < COMPARED:
                self._first.add(raw.key)
        elif raw.key in self._first and address != self.own[0]:
            raise DataError(
                f"The key {raw.key!r:.100} in {shard_name(address)} is also in {shard_name(self.own[0])}",
                expected="one key per sample: records, flags and the held-out split use it",
                remedy="set --data.init_args.keys shard, so that the name of the shard becomes a part of each key",
            )


def _generator(*words: object) -> random.Random:
    """Return a generator for these words, the same on every machine."""
    return random.Random(" ".join(map(str, words)))  # noqa: S311 (an order, no secret)


def _taken(buffer: list[Any], generator: random.Random) -> Any:
    """Take one entry out of a buffer. The last entry takes its place."""
    place = generator.randrange(len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


def on_paper(
    counts: Sequence[int], draws: int, *, buffer: int, own: int, endless: bool, generator: random.Random
) -> tuple[list[Entry], Entry]:
    """Return the content of a buffer after a number of draws, and the next sample that enters it.

    Args:
        counts: the number of samples in each finished shard.
        draws: the number of drawn samples.
        buffer: the size of the buffer.
        own: the number of shards.
        endless: whether the shards begin again.
        generator: the generator of the draws, which then has the state after them.
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
