"""CSV tables that somebody else wrote: no row is swallowed, and no value stands under another column.

Values may be separated by commas, semicolons or tabs, whichever splits the first row into the wanted names. Excel's
line `sep=;` may stand before it. Values may have double quotes around them, doubled within. Empty lines, empty values
after the last column, and names of columns in upper or lower case are accepted. A table is refused, with the line, for
a quote that is never closed or ends within a value, because rows until the next quote would become one value. Values
beyond 128 KiB, rows with more or fewer values than the first row, and two columns of one name are refused, too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from memtrain.errors import DataError

DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class CsvTable:
    """The content of a table.

    Attributes:
        columns: the names in lower case, without empty ones.
        rows: the values by column.
        lines: the line of the file at which each row begins, from 1.
    """

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]


def csv_table(text: str, where: str, *, wanted: Collection[str], delimiters: Collection[str] = DELIMITERS) -> CsvTable:
    """Read the table in CSV text. An empty text gives a table without columns.

    Args:
        text: the text of the file.
        where: the name of the file, for errors.
        wanted: the names of wanted columns; the delimiter is the one that separates them.
        delimiters: the allowed delimiters.

    Raises:
        DataError: if the rows cannot be told apart for certain; see the module. The caller checks that wanted columns
            exist.
    """
    first, _, rest = text.partition("\n")
    skipped = 0
    if first.lower().startswith("sep=") and len(first.rstrip()) <= 5:
        said = first[4:5]
        delimiters, text, skipped = (said,), rest, 1
        if said not in DELIMITERS:
            raise DataError(
                f"{where}, line 1: values are separated by {said!r}",
                expected="',', ';' or a tab",
                remedy="save it with one of these delimiters",
            )
    delimiter = max(delimiters, key=lambda one: _fits(text, one, wanted))
    records = _records(text, where, delimiter, skipped)
    names = next(records, (0, []))[1]
    columns = [name.strip().lower() for name in names]
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise DataError(
            f"{where} has several columns {twice[0]!r}",
            expected="names that differ in more than case and spaces",
            remedy="rename or remove all but one",
        )
    rows, lines = [], []
    for line, values in records:
        if any(value.strip() for value in values[len(columns) :]) or len(values) < len(columns):
            raise DataError(
                f"{where}, line {line}: {len(values)} values, and the first row names {len(columns)} columns",
                expected=f"as many values, separated by {delimiter!r}",
                remedy='put values with a comma, semicolon, tab or line break into double quotes ("...")',
            )
        rows.append({name: value for name, value in zip(columns, values, strict=False) if name})
        lines.append(line)
    return CsvTable(tuple(filter(None, columns)), tuple(rows), tuple(lines))


def _fits(text: str, delimiter: str, wanted: Collection[str]) -> tuple[int, int]:
    """Count the wanted columns in the first row, and all its columns."""
    try:
        names = next(_records(text, "", delimiter, 0), (0, []))[1]
    except DataError:
        return 0, 0
    return sum(name.strip().lower() in wanted for name in names), len(names)


def _records(text: str, where: str, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, with the line at which each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        begins = reader.line_num + 1 + skipped
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            behind = "expected after" in str(error)
            said = "there is text behind the end of a quoted value" if behind else "a quote has no end"
            raise DataError(
                f"{where}, line {begins}: {said} ({error})",
                expected='quotes around a whole value, and doubled within ("")',
                remedy="close or double the quote; text with one prompt per line may be a .txt file instead",
            ) from error
        if any(value.strip() for value in values) or len(values) > 1:
            yield begins, values
