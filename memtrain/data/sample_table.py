"""Samples as columns of Arrow, with 100 bytes each instead of a kilobyte. Objects are made on demand.

Cost: 3 us for a sample by its number, 1 us in a loop over all of them. Cannot: hold text that is not UTF-8, which every
source refuses.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memtrain.data.source import Sample

AT_ONCE = 4096
"""The number of samples that a loop turns into objects at a time."""
SCHEMA = pa.schema(
    [("key", pa.large_string()), ("caption", pa.large_string()), ("alternatives", pa.large_list(pa.large_string()))]
)


class SampleTable(Sequence[Sample]):
    """Samples in columns.

    Args:
        table: a table with the columns of :data:`SCHEMA`, and perhaps others.
    """

    def __init__(self, table: pa.Table) -> None:
        self._columns = [table[name].cast(SCHEMA.field(name).type).combine_chunks() for name in SCHEMA.names]
        self._columns = [one.chunk(0) if isinstance(one, pa.ChunkedArray) else one for one in self._columns]
        # Most data have one caption for each image.
        self._several = len(self._columns[2].values) > 0

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> SampleTable:
        """Put samples into columns.

        Raises:
            UnicodeEncodeError: if a text is not UTF-8.
        """
        if isinstance(samples, SampleTable):
            return samples
        parts, some = [], list(samples)
        for start in range(0, len(some), AT_ONCE):
            chunk = some[start : start + AT_ONCE]
            columns = [[one.key for one in chunk], [one.caption for one in chunk], [one.alternatives for one in chunk]]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
            parts.append(pa.table(arrays, schema=SCHEMA))
        return cls(pa.concat_tables(parts) if parts else SCHEMA.empty_table())

    def table(self) -> pa.Table:
        """Return the columns as a table."""
        return pa.table(self._columns, schema=SCHEMA)

    def keys(self) -> list[str]:
        """Return the keys of all samples, in their order."""
        found: list[str] = self._columns[0].to_pylist()
        return found

    def captions(self) -> list[str]:
        """Return the first caption of each sample."""
        found: list[str] = self._columns[1].to_pylist()
        return found

    def ordinary(self, *, most: tuple[int, int], controls: str) -> bool:
        """Check all samples at once. If the result is False, they must be checked one by one.

        Args:
            most: the largest number of characters of a key and of a caption.
            controls: the pattern of unusual characters, in addition to NUL.
        """
        key, caption, others = self._columns
        texts = [(key, most[0], "\\x00"), (caption, most[1], f"\\x00|{controls}")]
        texts += [(others.values, most[1], f"\\x00|{controls}")] if self._several else []
        for column, longest, pattern in texts:
            odd = pc.or_(pc.greater(pc.utf8_length(column), longest), pc.match_substring_regex(column, pattern))
            if pc.any(odd).as_py():
                return False
        blank = any(pc.any(pc.equal(pc.utf8_trim_whitespace(one), "")).as_py() for one, _, _ in texts[1:])
        return len(self) > 0 and not blank and pc.count_distinct(key).as_py() == len(self)

    def take(self, rows: Sequence[int]) -> SampleTable:
        """Return some of the samples."""
        return SampleTable(self.table().take(pa.array(np.asarray(rows, np.int64))))

    def joined(self, others: Iterable[Sample]) -> SampleTable:
        """Return these samples, followed by others."""
        return SampleTable(pa.concat_tables([self.table(), SampleTable.of(others).table()]))

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleTable: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleTable:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        key, caption, others = self._columns
        number = int(index)
        found = tuple(others[number].as_py()) if self._several else ()
        return Sample(key[number].as_py(), caption[number].as_py(), found)

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), AT_ONCE):
            key, caption, others = (column.slice(start, AT_ONCE) for column in self._columns)
            texts: Any = others.to_pylist() if self._several else [()] * len(key)
            for one in zip(key.to_pylist(), caption.to_pylist(), texts, strict=True):
                yield Sample(one[0], one[1], tuple(one[2]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]


def chosen(samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample]:
    """Return some of the samples, in columns if all of them are in columns."""
    return samples.take(rows) if isinstance(samples, SampleTable) else [samples[row] for row in rows]


def keys_of(samples: Sequence[Sample]) -> list[str]:
    """Return the key of each sample."""
    return samples.keys() if isinstance(samples, SampleTable) else [sample.key for sample in samples]


def joined(parts: Sequence[Sequence[Sample]]) -> Sequence[Sample]:
    """Join several lists of samples, in columns if all of them are in columns."""
    if all(isinstance(part, SampleTable) for part in parts):
        return SampleTable(pa.concat_tables([SCHEMA.empty_table(), *(SampleTable.of(part).table() for part in parts)]))
    return [sample for part in parts for sample in part]


def in_columns(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Put samples into columns. If a text is not UTF-8, return them unchanged; they are refused later."""
    try:
        return SampleTable.of(samples)
    except UnicodeEncodeError:
        return samples


@contextmanager
def without_collection() -> Iterator[None]:
    """Stop the garbage collector while millions of lasting objects are made; each pass would visit all of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _same(one: object, other: object) -> bool:
    return one == other
