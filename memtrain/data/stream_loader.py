"""Batches of a stream, in an order that does not depend on how fast its workers are.

Each loader worker makes whole batches of what it draws (:class:`memtrain.data.stream_place.Feed`), and workers take
turns for ever: one whose samples are through says so in its turns, until all have said it. With each batch comes the
place that its worker had reached, so a checkpoint can say where every worker is, and a resumed run begins there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from memtrain.data.broken import Broken
from memtrain.data.dataset import Batch
from memtrain.data.images import to_pixel_values
from memtrain.data.shard_reading import Raw
from memtrain.data.stream_place import Feed, Place, Share
from memtrain.data.streamed_sample import StreamedSample
from memtrain.data.token_table import Tokens
from memtrain.errors import DataError

NOWHERE = Place()
"""The beginning of an epoch."""


@dataclass(frozen=True)
class Turn:
    """What a worker gives when it is its turn.

    Attributes:
        worker: its number.
        batch: None where it has none.
        place: that it has reached.
        broken: samples that it left out since its last turn.
        over: whether it will have none any more.
    """

    worker: int
    batch: Batch | None = None
    place: Place = NOWHERE
    broken: tuple[Broken, ...] = ()
    over: bool = False


@dataclass(frozen=True)
class Begin:
    """Where an iteration begins.

    Attributes:
        epoch: of the order.
        places: of the workers; empty for the beginning of the epoch.
        turn: the worker whose turn it is.
        batches: that are done in the epoch.
    """

    epoch: int = 0
    places: tuple[Place, ...] = ()
    turn: int = 0
    batches: int = 0

    def after(self, turn: Turn, *, workers: int) -> Begin:
        """Where to begin once a batch was trained on."""
        places = list(self.places) or [NOWHERE] * workers
        places[turn.worker] = turn.place
        return replace(self, places=tuple(places), turn=(turn.worker + 1) % workers, batches=self.batches + 1)


class Stream(IterableDataset[Turn]):
    """The turns of the workers of one process.

    Args:
        feed: gives each its samples.
        batch_size: samples in a batch.
        resolution: of the images.
        tokens: makes the fields of captions; None leaves them out.
        skip: leave out what cannot be used, instead of raising.
        rank: of the process.
        processes: number of them.

    Attributes:
        begin: where an iteration begins.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        batch_size: int,
        resolution: int,
        tokens: Tokens | None,
        skip: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.feed, self.batch_size, self.resolution, self.tokens = feed, batch_size, resolution, tokens
        self.skip, self.rank, self.processes = skip, rank, processes
        self.begin = Begin()

    def __iter__(self) -> Iterator[Turn]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if worker < self.begin.turn:
            yield Turn(worker)
        place = self.begin.places[worker] if self.begin.places else NOWHERE
        drawn = self.feed.drawn(self.begin.epoch, Share(self.rank, self.processes, worker, workers), place)
        items: list[dict[str, Any]] = []
        broken: list[Broken] = []
        for raw in drawn:
            try:
                items.append(self.item(raw))
            except DataError as error:
                if not self.skip:
                    raise
                broken.append(Broken(raw.key, raw.shard, " ".join(error.problem.split())))
            if len(items) == self.batch_size:
                yield Turn(worker, default_collate(items), drawn.place, tuple(broken))
                items, broken = [], []
        while True:
            yield Turn(worker, broken=tuple(broken), over=True)
            broken = []

    def item(self, raw: Raw) -> dict[str, Any]:
        """A sample as a trainer takes it.

        Raises:
            DataError: if it cannot be used.
        """
        image = StreamedSample(raw).load_image(0)
        tokens = {} if self.tokens is None else self.tokens([raw.caption])
        return {
            "key": raw.key,
            "caption": raw.caption,
            "pixel_values": to_pixel_values(image, self.resolution),
            **{field: values[0] for field, values in tokens.items()},
        }


class StreamLoader(DataLoader[Any]):
    """Batches of a stream, anew in each epoch.

    Args:
        stream: of this process.
        num_workers: loader processes.
        batches: in an epoch; None as many as there are.

    Attributes:
        epoch: gives the current one.
        begin: is told the epoch when an iteration begins, and says where.
        report: is told what was left out, and how many samples were given with it.
        given: what belongs to the batches that were handed over, oldest first.
    """

    epoch: Callable[[], int] = staticmethod(lambda: 0)
    begin: Callable[[int], Begin] = staticmethod(Begin)
    report: Callable[[Sequence[Broken], int], None] = staticmethod(lambda broken, given: None)

    def __init__(self, stream: Stream, *, num_workers: int = 0, batches: int | None = None) -> None:
        super().__init__(stream, batch_size=None, collate_fn=as_it_is, num_workers=num_workers)
        self.batches = batches
        self.given: deque[Turn] = deque()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        stream: Any = self.dataset
        stream.begin = begin = self.begin(self.epoch())
        self.given.clear()
        batches, over = begin.batches, set[int]()
        if self.batches is not None and batches >= self.batches:
            return
        for turn in super().__iter__():
            self.report(turn.broken, 0 if turn.batch is None else stream.batch_size)
            if turn.over:
                over.add(turn.worker)
                if len(over) == max(1, self.num_workers):
                    break
            if turn.batch is None:
                continue
            batches += 1
            self.given.append(replace(turn, batch=None, broken=()))
            yield turn.batch
            if batches == self.batches:
                return
        if not batches:
            raise DataError(
                f"The stream has less than one batch of {stream.batch_size} samples for this process",
                expected="a batch for each loader worker at least",
                remedy="take smaller batches, fewer workers, or more data",
            )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module knows the place; this tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take up."""


def as_it_is(turn: Any) -> Any:
    """A turn, which holds a batch already."""
    return turn
