"""The files of a reference profile: a float32 row of values for each content, in parts of many samples.

Values are collected and written together, at least once a minute, so that an interrupted measurement goes on where it
stopped. Afterwards the parts are merged into one: the merged file is there whole before those that it takes the place
of go, and a content that is there twice has the same values, so a kill in between harms nothing. Several runs may read
and write one folder; what another run merges meanwhile is looked for again.

Cost: a start reads each file once; a million samples of 17 values at 4 timesteps are 340 MB, and read in seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memtrain.errors import RecordError
from memtrain.files.whole import written_whole

SECONDS = 45.0
"""After so long, what was measured is written down."""
ROWS = 2**16
"""So many samples at most wait to be written, and are read at a time."""
SEVERAL = 8
"""Parts beyond which they are merged."""
TRIES = 5

Values = npt.NDArray[np.float32]
Result = TypeVar("Result")


class ProfileParts:
    """Parts of one profile.

    Args:
        folder: of the profile.
        width: values of a sample.
        seconds: after which what was added is written.
    """

    def __init__(self, folder: Path, *, width: int, seconds: float = SECONDS) -> None:
        self.folder, self.width, self.seconds = folder, width, seconds
        self._contents: list[str] = []
        self._values: list[Values] = []
        self._since = time.monotonic()

    def add(self, contents: Sequence[str], values: Values) -> None:
        """Keep the values `(n, width)` of contents, to be written at the next :meth:`flush`."""
        if not self._contents:
            self._since = time.monotonic()
        self._contents += contents
        self._values.append(values.reshape(len(contents), self.width))

    @property
    def due(self) -> bool:
        """Whether it is time to write what was added."""
        return len(self._contents) >= ROWS or time.monotonic() - self._since >= self.seconds

    def flush(self) -> None:
        """Write what was added."""
        if not self._contents:
            return
        table = _table(pa.array(self._contents, pa.string()), np.concatenate(self._values))
        # After all of its samples: data that share some of them must not write over each other's parts.
        part = hashlib.sha256("".join(self._contents).encode()).hexdigest()[:24]
        _write([table], self.folder / f"{part}.parquet", width=self.width)
        self._contents, self._values = [], []

    def paths(self) -> list[Path]:
        """All parts, in fixed order."""
        return sorted(self.folder.glob("*.parquet"))

    def contents(self) -> pa.ChunkedArray:
        """The contents of all parts, in their order."""
        return _retried(lambda: _contents(self.paths()))

    def read(self, wanted: pa.Array) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Values of contents `(n, width)`, NaN where there are none, and which of them there are `(n,)`."""
        return _retried(lambda: self._read(wanted))

    def _read(self, wanted: pa.Array) -> tuple[Values, npt.NDArray[np.bool_]]:
        paths = self.paths()
        place = positions(wanted, _contents(paths))
        found = np.full((len(wanted), self.width), np.nan, dtype=np.float32)
        order = np.argsort(place, kind="stable")
        sorted_places, first = place[order], 0
        for path in paths:
            with _opened(path) as file:
                for batch in file.iter_batches(batch_size=ROWS, columns=["values"]):
                    start, end = np.searchsorted(sorted_places, [first, first + len(batch)])
                    rows = order[start:end]
                    values = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
                    found[rows] = values[place[rows] - first]
                    first += len(batch)
        return found, place >= 0

    def merge(self, *, several: int = SEVERAL) -> bool:
        """Make one part of many; whether there were more than `several`."""
        paths = self.paths()
        if len(paths) <= several:
            return False
        try:
            contents = _contents(paths)
            # The first of several rows of one content, as in `read`.
            kept = positions(contents, contents) == np.arange(len(contents))
            name = hashlib.sha256("".join(path.stem for path in paths).encode()).hexdigest()[:24]
            _write(self._kept(paths, contents, kept), self.folder / f"{name}.parquet", width=self.width)
        except FileNotFoundError:
            # Another run merged them.
            return False
        for path in paths:
            path.unlink(missing_ok=True)
        return True

    def _kept(
        self, paths: Sequence[Path], contents: pa.ChunkedArray, kept: npt.NDArray[np.bool_]
    ) -> Iterator[pa.Table]:
        first = 0
        for path in paths:
            with _opened(path) as file:
                for batch in file.iter_batches(batch_size=ROWS, columns=["values"]):
                    values = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
                    chosen = kept[first : first + len(batch)]
                    names = contents.slice(first, len(batch)).filter(pa.array(chosen))
                    yield _table(names, values[chosen])
                    first += len(batch)


def positions(wanted: pa.Array | pa.ChunkedArray, known: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Where each of `wanted` is first among `known`, -1 where it is not."""
    found = pc.index_in(wanted, value_set=known).fill_null(-1)
    places: npt.NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return places


def _schema(width: int) -> pa.Schema:
    return pa.schema([("content", pa.string()), ("values", pa.list_(pa.float32(), width))])


def _table(contents: pa.Array | pa.ChunkedArray, values: Values) -> pa.Table:
    # Earlier parts hold doubles, which were single before.
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    rows = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table({"content": contents, "values": rows}, schema=_schema(values.shape[1]))


def _write(tables: Iterable[pa.Table], path: Path, *, width: int) -> None:
    with (
        written_whole(path) as unfinished,
        # Neither names nor values repeat.
        pq.ParquetWriter(unfinished, _schema(width), use_dictionary=False) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def _contents(paths: Sequence[Path]) -> pa.ChunkedArray:
    chunks: list[pa.Array] = []
    for path in paths:
        with _opened(path) as file:
            chunks += file.read(columns=["content"])["content"].chunks
    return pa.chunked_array(chunks, pa.string())


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise RecordError(
            f"{path} is torn: {' '.join(str(error).split()):.200}",
            expected="a part of a reference profile that was written whole",
            remedy="remove it: its samples are then measured again, by a new run, or with `reference: first_visit` by "
            "this one",
        ) from error


def _retried(reading: Callable[[], Result]) -> Result:
    """What is read of parts that another process may be merging."""
    for _ in range(TRIES - 1):
        try:
            return reading()
        except FileNotFoundError:
            time.sleep(0.2)
    return reading()
