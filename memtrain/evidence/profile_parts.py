"""The files of a reference profile, with a float32 row of values for each content, in parts of many samples.

Values are collected and written together, at least once a minute, so that an interrupted measurement goes on where it
stopped. Afterwards the parts are merged into one. The merged file is complete before the old files are deleted, and a
content in two files has the same values, so a kill in between does no harm. Several runs may read and write one folder.
If another run merges files meanwhile, they are searched again.

Cost: a start reads each file once. A million samples of 17 values at 4 timesteps take 340 MB, and are read in seconds.
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
"""Seconds after which measured values are written."""
ROWS = 2**16
"""Largest number of samples that wait to be written, or are read at a time."""
SEVERAL = 8
"""Number of parts above which they are merged."""
TRIES = 5

Values = npt.NDArray[np.float32]
Result = TypeVar("Result")


class ProfileParts:
    """Parts of one profile.

    Args:
        folder: the folder of the profile.
        width: number of values of a sample.
        seconds: number of seconds after which added values are written.
    """

    def __init__(self, folder: Path, *, width: int, seconds: float = SECONDS) -> None:
        self.folder, self.width, self.seconds = folder, width, seconds
        self._contents: list[str] = []
        self._values: list[Values] = []
        self._since = time.monotonic()

    def add(self, contents: Sequence[str], values: Values) -> None:
        """Keep the values `(n, width)` of contents for the next :meth:`flush`."""
        if not self._contents:
            self._since = time.monotonic()
        self._contents += contents
        self._values.append(values.reshape(len(contents), self.width))

    @property
    def due(self) -> bool:
        """Return whether it is time to write the added values."""
        return len(self._contents) >= ROWS or time.monotonic() - self._since >= self.seconds

    def flush(self) -> None:
        """Write the added values."""
        if not self._contents:
            return
        table = _table(pa.array(self._contents, pa.string()), np.concatenate(self._values))
        # A hash of all its samples names the part, so that data with common samples do not overwrite each other's
        # parts.
        part = hashlib.sha256("".join(self._contents).encode()).hexdigest()[:24]
        _write([table], self.folder / f"{part}.parquet", width=self.width)
        self._contents, self._values = [], []

    def paths(self) -> list[Path]:
        """Return all parts in fixed order."""
        return sorted(self.folder.glob("*.parquet"))

    def contents(self) -> pa.ChunkedArray:
        """Return the contents of all parts in their order."""
        return _retried(lambda: _contents(self.paths()))

    def read(self, wanted: pa.Array) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Return the values of contents `(n, width)`, NaN if unknown, and whether they are known `(n,)`."""
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
        """Merge many parts into one; return whether there were more than `several`."""
        paths = self.paths()
        if len(paths) <= several:
            return False
        try:
            contents = _contents(paths)
            # The first of several rows of one content counts, as in `read`.
            kept = positions(contents, contents) == np.arange(len(contents))
            name = hashlib.sha256("".join(path.stem for path in paths).encode()).hexdigest()[:24]
            _write(self._kept(paths, contents, kept), self.folder / f"{name}.parquet", width=self.width)
        except FileNotFoundError:
            # Another run has merged them.
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
    """Return the first place of each of `wanted` in `known`, or -1."""
    found = pc.index_in(wanted, value_set=known).fill_null(-1)
    places: npt.NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return places


def _schema(width: int) -> pa.Schema:
    return pa.schema([("content", pa.string()), ("values", pa.list_(pa.float32(), width))])


def _table(contents: pa.Array | pa.ChunkedArray, values: Values) -> pa.Table:
    # Parts of earlier versions hold doubles, made from single precision.
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
            expected="a complete part of a reference profile",
            remedy="delete it; a new run measures its samples again, or this run with `reference: first_visit`",
        ) from error


def _retried(reading: Callable[[], Result]) -> Result:
    """Read parts again if another process is merging them."""
    for _ in range(TRIES - 1):
        try:
            return reading()
        except FileNotFoundError:
            time.sleep(0.2)
    return reading()
