"""Tables of keys: a run's `flagged.csv`, a scan's `exclude.csv`, and both after a spreadsheet has saved them.

Accepted: the tables that :mod:`memtrain.files.csv_table` accepts, with a column `key`, and keys in the form that
:mod:`memtrain.files.sheet_cells` writes. Refused: a table without that column, and rows without a key. A table without
rows names no keys. If captions have another encoding than UTF-8, keys in ASCII are read anyway.
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
    """Read the keys of a table, in its order.

    Raises:
        DataError: if the file cannot be read, lacks the column, or has a row without a key.
    """
    try:
        text, one_byte = read_text(path), False
    except DataError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise DataError(error.problem, expected=EXPECTED, remedy=error.remedy) from error
        # Excel's plain CSV has a byte for each character. Captions are not needed, and all encodings share ASCII.
        text, one_byte = read_text(path, encoding="latin-1"), True
    keys = _keys(path, text)
    if one_byte and not all(key.isascii() for key in keys):
        raise DataError(
            f"{path} is not UTF-8, and has keys such as {next(key for key in keys if not key.isascii())!r:.80}",
            expected=EXPECTED,
            remedy="save it as CSV UTF-8",
        )
    return keys


def _keys(path: Path, text: str) -> list[str]:
    table = csv_table(text, str(path), wanted=(COLUMN,))
    if COLUMN not in table.columns:
        raise DataError(
            f"{path} has the columns {list(table.columns)}",
            expected=EXPECTED,
            remedy="name another file, or rename the column with the keys to `key`",
        )
    for line, row in zip(table.lines, table.rows, strict=True):
        if not row[COLUMN]:
            raise DataError(f"{path}, line {line} has no key", expected=EXPECTED, remedy="correct or remove the line")
    return [cell_of(row[COLUMN]) for row in table.rows]
