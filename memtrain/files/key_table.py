"""Tables of keys: a run's `flagged.csv`, a scan's `exclude.csv`, and either after a spreadsheet has saved it again.

Accepted: what :mod:`memtrain.files.csv_table` accepts, with a column `key`; keys as
:mod:`memtrain.files.sheet_cells` writes them. Refused: a table without that column, and rows without a key. A table
without rows names no keys.
"""

from __future__ import annotations

from pathlib import Path

from memtrain.errors import DataError
from memtrain.files.csv_table import csv_table
from memtrain.files.sheet_cells import cell_of
from memtrain.files.text import read_text

COLUMN = "key"
EXPECTED = "a CSV file with a column `key`, such as a run's flagged.csv"


def read_key_table(path: Path) -> list[str]:
    """The keys of a table, in its order.

    Raises:
        DataError: if it cannot be read, lacks the column, or a row lacks its key.
    """
    try:
        table = csv_table(read_text(path), str(path), wanted=(COLUMN,))
    except DataError as error:
        raise DataError(error.problem, expected=f"{EXPECTED}; {error.expected}", remedy=error.remedy) from error
    if COLUMN not in table.columns:
        raise DataError(
            f"{path} has the columns {list(table.columns)}",
            expected=EXPECTED,
            remedy="name another file, or list the keys",
        )
    for line, row in zip(table.lines, table.rows, strict=True):
        if not row[COLUMN]:
            raise DataError(f"{path}, line {line} has no key", expected=EXPECTED, remedy="correct or remove the line")
    return [cell_of(row[COLUMN]) for row in table.rows]
