"""Batches of a stream, in an order that does not depend on the speed of its workers.

Each loader worker makes whole batches of the samples that it draws (:class:`memtrain.data.stream_place.Feed`). Workers
take turns: a worker without further samples says so in its turns until all workers have said it. Each batch comes with
the place that its worker has reached. So a checkpoint holds the place of every worker, and a resumed run begins there.
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
    """The result of a worker's turn.

    Attributes:
        worker: the number of the worker.
        batch: the batch; None if the worker has none.
        place: the place that the worker has reached.
        broken: the samples that it left out since its last turn.
        over: whether the worker has no further batches.
    """

    worker: int
    batch: Batch | None = None
    place: Place = NOWHERE
    broken: tuple[Broken, ...] = ()
    over: bool = False


@dataclass(frozen=True)
class Begin:
    """The beginning of an iteration.

    Attributes:
        epoch: the epoch of the order.
        places: the places of the workers; empty for the beginning of the epoch.
        turn: the number of the worker whose turn it is.
        batches: the number of finished batches in the epoch.
    """

    epoch: int = 0
    places: tuple[Place, ...] = ()
    turn: int = 0
    batches: int = 0

    def after(self, turn: Turn, *, workers: int) -> Begin:
        """Return the beginning after a batch was trained on."""
        places = list(self.places) or [NOWHERE] * workers
        places[turn.worker] = turn.place
        return replace(self, places=tuple(places), turn=(turn.worker + 1) % workers, batches=self.batches + 1)


class Stream(IterableDataset[Turn]):
    """The turns of the workers of one process.

    Args:
        feed: the feed, which gives each worker its samples.
        batch_size: the number of samples in a batch.
        resolution: the image size in pixels.
        tokens: the function that makes the fields of captions; None leaves them out.
        skip: whether to leave out samples that cannot be used, instead of raising an error.
        rank: the number of the process.
        processes: the number of processes.

    Attributes:
        begin: the beginning of an iteration.
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
        """Turn a sample into the item of a batch.

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
    """Batches of a stream, in a new order in each epoch.

    Args:
        stream: the stream of this process.
        num_workers: the number of loader processes.
        batches: the number of batches in an epoch; None means all.

    Attributes:
        epoch: the function that returns the current epoch.
        begin: the function that receives the epoch when an iteration begins, and returns its beginning.
        report: the function that receives the samples that were left out, and the number of samples given with them.
        given: the turns of the batches that were handed over, oldest first.
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
                expected="at least one batch for each loader worker",
                remedy="lower data.init_args.batch_size or data.init_args.num_workers, or add data",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module holds the place. The method tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the data module holds the place."""


def as_it_is(turn: Any) -> Any:
    """Return a turn unchanged, because it holds a batch already."""
    return turn
