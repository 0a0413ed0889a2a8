"""Text in memtrain's CSV files: no spreadsheet evaluates it, no terminal obeys it, and it can be read again.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@` or a control character for a formula, which may start
programs and send data (CSV injection, https://owasp.org/www-community/attacks/CSV_Injection). Such a cell is written
with an apostrophe in front. Control characters except tab and line feed, marks that turn the order of text, and halves
of surrogate pairs are written as Python escapes them: a backslash and `x1b` or `u202e`. :func:`cell_of` undoes both,
even after Excel has saved the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import TextIO

import pyarrow as pa

_FORMULA = "=+\\-@\t\n\uff1d\uff0b\uff0d\uff20"
_ACTING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_WRITTEN = r"x(?:0[0-8b-f]|1[0-9a-f]|7f|[89][0-9a-f])|u(?:061c|200[ef]|202[a-e]|206[6-9]|d[89a-f][0-9a-f]{2})"
_TO_ESCAPE = re.compile(rf"(\\*)(?:([{_ACTING}])|(?={_WRITTEN}))")
_ESCAPED = re.compile(rf"(\\+)({_WRITTEN})")


def safe_cell(value: object) -> object:
    """Return a value as a cell. Only text is changed."""
    if not isinstance(value, str):
        return value
    text = _TO_ESCAPE.sub(lambda found: found[1] * 2 + (_escape(found[2]) if found[2] else ""), value)
    return f"'{text}" if re.match(rf"'*[{_FORMULA}]", text) else text


def cell_of(text: str) -> str:
    """Return the text from which :func:`safe_cell` made a cell."""
    if re.match(rf"'+[{_FORMULA}]", text):
        text = text[1:]
    return _ESCAPED.sub(_original, text)


def write_cells(file: TextIO, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV.

    Args:
        file: the file, opened with `newline=""` and as UTF-8.
        columns: the names of the columns.
        rows: the rows, with a value for each column.
    """
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([safe_cell(value) for value in row] for row in rows)


def safe_cells(table: pa.Table) -> pa.Table:
    """Return a table with its text written by :func:`safe_cell`, for pyarrow's own writer."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            cells = pa.array(map(safe_cell, table[field.name].to_pylist()), pa.string())
            table = table.set_column(place, field, cells)
    return table


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _original(found: re.Match[str]) -> str:
    slashes, said = len(found[1]), found[2]
    return "\\" * (slashes // 2) + (chr(int(said[1:], 16)) if slashes % 2 else said)
