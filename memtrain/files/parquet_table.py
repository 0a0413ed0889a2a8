"""Parquet tables that somebody else wrote, or that were cut off.

Accepted: one file, whose columns have different names. Refused: a file that is not Parquet or ends too early, and text
that is not UTF-8. A table without a needed column, or with more than 50 million rows or 16 GiB, is refused, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.errors import DataError

MOST_BYTES = 2**34
"""The largest size of all columns in bytes, before compression."""
MOST_ROWS = 5 * 10**7


def parquet_names(path: Path) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataError: if the file cannot be read.
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
    """Read the table in a file.

    Args:
        path: the path of the file.
        needed: the columns that the file must have.
        columns: the columns to read if they exist; by default all.
        schema: the columns that are needed and read, with the types that they get.
        what: the expected content, for the error.
        remedy: the remedy in the error.

    Raises:
        DataError: if the file cannot be read, or lacks a column.
    """
    if schema is not None:
        needed = columns = schema.names
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            lacking = [name for name in needed if name not in names]
            if not lacking and len(set(names)) == len(names):
                about = file.metadata
                # Sizes are read by row group: pyarrow ends the process if a column's description is damaged.
                size = sum(about.row_group(place).total_byte_size for place in range(about.num_row_groups))
                if size <= MOST_BYTES and about.num_rows <= MOST_ROWS:
                    table = file.read(columns=None if columns is None else [one for one in names if one in columns])
                    # Without this check, damaged offsets and damaged UTF-8 would be read as they are.
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
