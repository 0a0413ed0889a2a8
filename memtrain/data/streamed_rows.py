"""The rows of a data set that Hugging Face's `datasets` streams, as samples.

The library deals shards out to processes and workers and shuffles within a buffer, by seed and epoch. In the middle of
an epoch it is read again from the beginning, without decoding.
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
"""Epochs beyond which the library is told of those that are later passes of one epoch."""


class RowFeed:
    """Gives each worker its samples.

    Args:
        rows: an iterable data set of `datasets` whose images are not decoded.
        columns: of the image, caption and key.
        path: for messages.
        endless: begin again where the rows are through.
    """

    def __init__(self, rows: Any, columns: tuple[str, str, str], *, path: str, endless: bool = False) -> None:
        self.rows, self.columns, self.path, self.endless = rows, columns, path, endless

    def drawn(self, epoch: int, share: Share, place: Place) -> RowsDrawn:
        """What a worker draws from a place on; the library knows the worker itself."""
        return RowsDrawn(self, epoch, place)


class RowsDrawn:
    """What one worker draws.

    Args:
        feed: with all rows.
        epoch: of the order.
        place: where it begins.
    """

    def __init__(self, feed: RowFeed, epoch: int, place: Place) -> None:
        self.feed, self.epoch = feed, epoch
        self._draws, self._skipped = 0, place.draws

    @property
    def place(self) -> Place:
        """How far it has come."""
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
    """The rows of a process, and the columns of image, caption and key.

    Args:
        name: of the data set, or its folder.
        options: of the path.
        seed: of the order.
        buffer: rows among which the next one is drawn; 0 leaves the order as it is.
        rank: of the process.
        processes: number of them.

    Raises:
        DataError: if it cannot be opened.
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
    except Exception as error:  # of the library, its file readers and the network
        raise DataError(
            f"The stream {name!r} cannot be opened: {type(error).__name__}: {error}",
            expected="the name of a data set on the Hub, or a folder of its files, and its columns",
            remedy="check name, split and columns in the path",
        ) from error
    if buffer:
        rows = rows.shuffle(seed=seed, buffer_size=buffer)
    if processes > 1:
        split = importlib.import_module("datasets.distributed").split_dataset_by_node
        rows = split(rows, rank=rank, world_size=processes)
    return rows, (image, caption, key)
