"""Parquet tables that somebody else wrote, or that were cut off.

Accepted: one file, whose columns have different names. Refused: what is no Parquet file or ends in its middle, text
that is not UTF-8, a table without a column that is needed, and one of more than 50 million rows or 16 GiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.errors import DataError

MOST_BYTES = 2**34
"""Of all columns, before compression."""
MOST_ROWS = 5 * 10**7


def parquet_names(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            return names
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise _unreadable(path, error, "a Parquet file", "check the path, or write the file again") from error


def read_parquet(
    path: Path,
    *,
    needed: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    what: str = "a Parquet file",
    remedy: str = "check the path, or write the file again",
) -> pa.Table:
    """The table that a file holds.

    Args:
        path: of the file.
        needed: columns without which it is not what it should be.
        columns: to read, where they are there; default all.
        schema: columns that are needed and read, with the types that they become.
        what: it should hold, for the error.
        remedy: what to do where it does not.

    Raises:
        DataError: if it cannot be read, or lacks a column.
    """
    if schema is not None:
        needed = columns = schema.names
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            lacking = [name for name in needed if name not in names]
            if not lacking and len(set(names)) == len(names):
                about = file.metadata
                # Not column by column: pyarrow ends the process where the description of one is spoilt.
                size = sum(about.row_group(place).total_byte_size for place in range(about.num_row_groups))
                if size <= MOST_BYTES and about.num_rows <= MOST_ROWS:
                    table = file.read(columns=None if columns is None else [one for one in names if one in columns])
                    # Offsets and UTF-8, which are read as they stand otherwise.
                    table.validate(full=True)
                    return table if schema is None else table.select(schema.names).cast(schema)
                problem = f"{path} holds {about.num_rows} rows of {size} bytes in all, uncompressed"
            elif lacking:
                problem = f"{path} has no column {', '.join(map(repr, lacking))}, but {names}"
            else:
                problem = f"{path} has several columns of one name: {names}"
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise _unreadable(path, error, what, remedy) from error
    raise DataError(problem, expected=what, remedy=remedy)


def _unreadable(path: Path, error: Exception, what: str, remedy: str) -> DataError:
    said = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read: {said:.200}", expected=what, remedy=remedy)
