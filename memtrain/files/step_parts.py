"""The parts of a run's step records: which there are, how they are read one after the other, and how they are merged.

A part is `rank-00000/part-00000000-00000049.parquet`: the rows of one rank for a range of batches. Parts are merged
into larger ones, as in a log-structured table: the merged part is there whole before those that it holds go. A kill in
between leaves both; so a part whose range lies within another's of the same rank counts for nothing, and the next start
removes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.errors import RecordError
from memtrain.files.whole import written_whole

PART = re.compile(r"part-(\d+)-(\d+)\.parquet")
ROWS = 2**17
"""Rows that are read and written at a time."""


@dataclass(frozen=True)
class Part:
    """Rows of one rank.

    Attributes:
        path: of the file.
        first: batch.
        last: batch.
    """

    path: Path
    first: int
    last: int

    @property
    def rank(self) -> str:
        """The name of the rank's folder."""
        return self.path.parent.name

    def spanning(self, first: int, last: int) -> Path:
        """The path of a part of the same rank with other batches."""
        return self.path.with_name(f"part-{first:08d}-{last:08d}.parquet")


def parts_of(folder: Path) -> list[Part]:
    """The parts of all ranks, by rank and batch, without those that larger ones have taken in.

    Args:
        folder: the run's `records` folder.
    """
    return _sorted_out(folder)[0]


def superseded(folder: Path) -> list[Path]:
    """Files that larger ones have taken in, left by a kill."""
    return _sorted_out(folder)[1]


def _sorted_out(folder: Path) -> tuple[list[Part], list[Path]]:
    found = [
        Part(path, int(match[1]), int(match[2]))
        for path in (folder / "steps").glob("rank-*/part-*.parquet")
        if (match := PART.fullmatch(path.name)) is not None
    ]
    current: list[Part] = []
    within: list[Path] = []
    for part in sorted(found, key=lambda part: (part.rank, part.first, -part.last)):
        if current and current[-1].rank == part.rank and part.last <= current[-1].last:
            within.append(part.path)
        else:
            current.append(part)
    return current, within


def opened(path: Path) -> pq.ParquetFile:
    """A table of which the end is there, without which it was not written whole.

    Raises:
        RecordError: if it is torn.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise torn(path, error) from error


def torn(path: Path, error: Exception) -> RecordError:
    """What to say of a file that was not written whole."""
    match = PART.fullmatch(path.name)
    before = f"continue from a checkpoint of before batch {int(match[1])}, or " if match else ""
    return RecordError(
        f"{path} is torn: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        expected="a table that was written whole; memtrain renames tables into place when they are",
        remedy=f"restore the file from a copy, {before}start the run anew in another folder",
    )


def rows_of(path: Path) -> int:
    """The number of rows of a file."""
    with opened(path) as file:
        rows: int = file.metadata.num_rows
    return rows


def tables_of(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a file, some at a time, in their order.

    Args:
        path: of the file.
        columns: those of them that are there; default all.

    Raises:
        RecordError: if it is torn.
    """
    with opened(path) as file:
        names = file.schema_arrow.names
        wanted = names if columns is None else [name for name in columns if name in names]
        try:
            for batch in file.iter_batches(batch_size=ROWS, columns=wanted):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise torn(path, error) from error


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> int:
    """Write tables into one file, whole or not at all, in groups of many rows; returns the number of rows."""
    waiting: list[pa.Table] = [schema.empty_table()]
    rows = written = 0
    with written_whole(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for table in tables:
            waiting.append(table)
            rows += len(table)
            if rows - written >= ROWS:
                writer.write_table(pa.concat_tables(waiting, promote_options="default").select(schema.names))
                waiting, written = [schema.empty_table()], rows
        writer.write_table(pa.concat_tables(waiting, promote_options="default").select(schema.names))
    return rows


def merged(parts: Sequence[Part]) -> Part:
    """Make one part of several of a rank that follow each other."""
    schemas = []
    for part in parts:
        with opened(part.path) as file:
            schemas.append(file.schema_arrow)
    whole = Part(parts[0].spanning(parts[0].first, parts[-1].last), parts[0].first, parts[-1].last)
    schema = pa.unify_schemas(schemas, promote_options="default")
    write_tables((table for part in parts for table in tables_of(part.path)), schema, whole.path)
    for part in parts:
        if part.path != whole.path:
            part.path.unlink()
    return whole
