"""The parts of a run's step records: their list, their rows one after the other, and their merging.

A part is `rank-00000/part-00000000-00000049.parquet`: the rows of one rank for a range of batches. Parts are merged
into larger ones, as in a log-structured table. The merged part is complete before its parts are removed. A kill in
between leaves both, so a part whose range lies within another part's range of the same rank does not count, and the
next start removes it.
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
"""The number of rows that are read and written at a time."""


@dataclass(frozen=True)
class Part:
    """Rows of one rank.

    Attributes:
        path: the path of the file.
        first: the number of the first batch.
        last: the number of the last batch.
    """

    path: Path
    first: int
    last: int

    @property
    def rank(self) -> str:
        """The name of the rank's folder."""
        return self.path.parent.name

    def spanning(self, first: int, last: int) -> Path:
        """Return the path of a part of the same rank with other batches."""
        return self.path.with_name(f"part-{first:08d}-{last:08d}.parquet")


def parts_of(folder: Path) -> list[Part]:
    """List the parts of all ranks, by rank and batch, without parts that were merged into larger ones.

    Args:
        folder: the run's `records` folder.
    """
    return _sorted_out(folder)[0]


def superseded(folder: Path) -> list[Path]:
    """List files that were merged into larger ones, and that a kill left behind."""
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
    """Open a table whose end exists, which means that it was written whole.

    Raises:
        RecordError: if the end is missing.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise torn(path, error) from error


def torn(path: Path, error: Exception) -> RecordError:
    """Return the error for a file that was not written whole."""
    match = PART.fullmatch(path.name)
    before = f"continue from a checkpoint before batch {int(match[1])}, or " if match else ""
    return RecordError(
        f"{path} is torn: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        expected="a table that was written whole; memtrain renames a table into its place when it is complete",
        remedy=f"restore the file from a copy, {before}start the run again in another folder",
    )


def rows_of(path: Path) -> int:
    """Return the number of rows of a file."""
    with opened(path) as file:
        rows: int = file.metadata.num_rows
    return rows


def tables_of(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a file in their order, a part at a time.

    Args:
        path: the path of the file.
        columns: the wanted columns, as far as they exist; by default all.

    Raises:
        RecordError: if the file is torn.
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
    """Write tables into one file, whole or not at all, in groups of many rows. Return the number of rows."""
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
    """Merge several consecutive parts of a rank into one."""
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
