"""The rows of a data set that Hugging Face's `datasets` streams, as samples.

The library deals shards out to processes and workers, and shuffles within a buffer, by seed and epoch. A run that
resumes in the middle of an epoch reads the stream again from the beginning, without decoding.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from memtrain.data.huggingface import imported
from memtrain.data.shard_reading import Raw
from memtrain.data.stream_place import Place, Share
from memtrain.errors import DataError

_TURNS = 2**20
"""The distance between the epoch numbers of later passes of one epoch, larger than any number of real epochs."""


class RowFeed:
    """Gives each worker its samples.

    Args:
        rows: an iterable data set of `datasets` whose images are not decoded.
        columns: the columns of the image, the caption and the key.
        path: the path for messages.
        endless: whether to begin again after the last row.
    """

    def __init__(self, rows: Any, columns: tuple[str, str, str], *, path: str, endless: bool = False) -> None:
        self.rows, self.columns, self.path, self.endless = rows, columns, path, endless

    def drawn(self, epoch: int, share: Share, place: Place) -> RowsDrawn:
        """Return what a worker draws from a place on; the library knows the worker itself."""
        return RowsDrawn(self, epoch, place)


class RowsDrawn:
    """The samples that one worker draws.

    Args:
        feed: the feed with all rows.
        epoch: the epoch of the order.
        place: the place where the worker begins.
    """

    def __init__(self, feed: RowFeed, epoch: int, place: Place) -> None:
        self.feed, self.epoch = feed, epoch
        self._draws, self._skipped = 0, place.draws

    @property
    def place(self) -> Place:
        """The place that the worker has reached."""
        return Place(self._draws)

    def __iter__(self) -> Iterator[Raw]:
        turn = 0
        while True:
            before, rows = self._draws, copy.deepcopy(self.feed.rows)
            rows.set_epoch(self.epoch + turn * _TURNS)
            for row in rows:
                self._draws += 1
                if self._draws > self._skipped:
                    yield self._raw(row)
            turn += 1
            if not self.feed.endless or self._draws == before:
                return

    def _raw(self, row: Mapping[str, Any]) -> Raw:
        feed = self.feed
        missing = [column for column in feed.columns if column not in row]
        if missing:
            raise DataError(
                f"A row of {feed.path} has no {missing}, only {sorted(row)}",
                expected="an image, a caption and a key in every row",
                remedy="name the columns in the path: ?image=COLUMN&caption=COLUMN&key=COLUMN",
            )
        image, caption, key = (row[column] for column in feed.columns)
        text = caption[0] if isinstance(caption, list) and caption else caption
        content = image["bytes"] if isinstance(image, dict) else image
        name = "" if key is None else str(key)
        if key is None or not isinstance(text, str) or not text.strip() or not isinstance(content, bytes):
            found = f"a key {key!r:.80}, a caption of {type(text).__name__}, an image of {type(content).__name__}"
            return Raw(name, shard=feed.path, problem=f"it has {found}, or an empty caption")
        return Raw(name, text, content, feed.path)


def streamed_rows(
    name: str, options: Mapping[str, str], *, seed: int, buffer: int, rank: int = 0, processes: int = 1
) -> tuple[Any, tuple[str, str, str]]:
    """Open the rows of a process, and return them with the columns of image, caption and key.

    Args:
        name: the name of the data set, or its folder.
        options: the options of the path.
        seed: the seed of the order.
        buffer: the number of rows from which the next one is drawn; 0 keeps the order.
        rank: the number of the process.
        processes: the number of processes.

    Raises:
        DataError: if the stream cannot be opened.
    """
    datasets = imported()
    image, caption, key = options.get("image", "image"), options.get("caption", "text"), options["key"]
    try:
        rows = datasets.load_dataset(
            name,
            options.get("config"),
            split=options.get("split", "train"),
            revision=options.get("revision"),
            streaming=True,
        )
        rows = rows.cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # from the library, its file readers or the network
        raise DataError(
            f"The stream {name!r} cannot be opened ({type(error).__name__}): {error}",
            expected="the name of a data set on the Hub, or a folder of its files, and its columns",
            remedy="check name, split and columns in the path",
        ) from error
    if buffer:
        rows = rows.shuffle(seed=seed, buffer_size=buffer)
    if processes > 1:
        split = importlib.import_module("datasets.distributed").split_dataset_by_node
        rows = split(rows, rank=rank, world_size=processes)
    return rows, (image, caption, key)
