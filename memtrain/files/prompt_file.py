"""The rows of a file of prompts, of several kinds.

| ending | one row |
|---|---|
| `.txt` | a line |
| `.csv`, `.tsv` | a row of the table; see :mod:`memtrain.files.csv_table` |
| `.jsonl` | a line with an object, or with a text |
| `.json` | an entry of the list: an object, or a text |
| `.parquet` | a row |

All kinds but the last may be compressed, as `.csv.gz`. The tables of memtrain have a column `key`, `line` or `row`.
Cells of such a table are read in the form that :mod:`memtrain.files.sheet_cells` writes. Sizes are limited, counted
after decompressing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.errors import DataError
from memtrain.files.csv_table import DELIMITERS, csv_table
from memtrain.files.parquet_table import parquet_names, read_parquet
from memtrain.files.prompt_texts import missing, prompt_text
from memtrain.files.sheet_cells import cell_of
from memtrain.files.shown import shown
from memtrain.files.text import json_of, read_text

COLUMNS = ("caption", "prompt", "text")
"""Names of the column with the prompt, in the order of preference."""
OTHERS = ("memorized", "type", "seed")
"""Names of columns with further facts about the prompt."""
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
OURS = ("key", "line", "row")
"""Names of columns. Every table of memtrain with prompts has one of them."""
MOST_BYTES = 2**28
"""The largest size of text in bytes, decompressed."""


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        place: the place in the file, such as `line 3`.
        values: the values by the name of the column in lower case.
    """

    place: str
    values: Mapping[str, Any]


def kind_of(path: Path) -> str | None:
    """Return the ending that decides how a file is read, without `.gz`; None for an unknown ending."""
    name = path.name.lower()
    return next((suffix.removesuffix(".gz") for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file, including rows without a prompt.

    Args:
        path: the path of the file; a file of an unknown kind is read as text.

    Raises:
        DataError: if it cannot be read, or if its rows cannot be told apart for certain.
    """
    kind = kind_of(path) or ".txt"
    if kind == ".parquet":
        return _parquet(path)
    text = read_text(path, most=MOST_BYTES)
    if kind == ".txt":
        lines = text.removesuffix("\n").split("\n") if text else []
        return [Row(f"line {number}", {"text": line}) for number, line in enumerate(lines, 1)]
    if kind == ".jsonl":
        return list(_json_lines(path, text))
    if kind == ".json":
        return list(_json(path, text))
    delimiters = ("\t",) if kind == ".tsv" else DELIMITERS
    table = csv_table(text, shown(path), wanted=COLUMNS, delimiters=delimiters)
    if table.columns:
        _require_column(path, table.columns)
    ours = any(name in table.columns for name in OURS)
    return [
        Row(f"line {line}", {name: cell_of(value) for name, value in row.items()} if ours else row)
        for line, row in zip(table.lines, table.rows, strict=True)
    ]


def prompt_of(source: str, row: Row) -> str | None:
    """Return the prompt of a row; None if it has none.

    Args:
        source: the name of the file, for the error.
        row: the row.

    Raises:
        DataError: if the prompt is not a text, or if columns contradict each other.
    """
    where = f"{shown(source)}, {row.place}"
    # The first of several columns for the prompt counts, unless they contradict each other.
    said = {name: row.values[name] for name in COLUMNS if name in row.values and not missing(row.values[name])}
    texts = {name: prompt_text(value, f"{where}, `{name}`").strip() for name, value in said.items()}
    texts = {name: text for name, text in texts.items() if text}
    if len(set(texts.values())) > 1:
        raise DataError(
            f"{where} has different texts in its columns {' and '.join(texts)}",
            expected="one column with the prompt",
            remedy=f"rename the columns that are not the prompt (prompts have the names {', '.join(COLUMNS)})",
        )
    return next(iter(texts.values()), None)


def _parquet(path: Path) -> list[Row]:
    names = parquet_names(path)
    lowered = [name.strip().lower() for name in names]
    _require_column(path, lowered)
    wanted = [name for name, lower in zip(names, lowered, strict=True) if lower in (*COLUMNS, *OTHERS)]
    if len({name.strip().lower() for name in wanted}) < len(wanted):
        raise _ambiguous(path, wanted)
    table = read_parquet(path, columns=wanted)
    columns = {name.strip().lower(): table[name].to_pylist() for name in wanted}
    return [
        Row(f"row {number}", {name: values[number] for name, values in columns.items()}) for number in range(len(table))
    ]


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"line {number}"
            yield _entry(path, place, json_of(line, f"{shown(path)}, {place}"))


def _json(path: Path, text: str) -> Iterator[Row]:
    content = json_of(text, shown(path))
    if not isinstance(content, list):
        raise DataError(
            f"{shown(path)} holds {_called(content)}",
            expected='a list of prompts, or of objects such as {"prompt": "..."}',
            remedy="write a list, or a .jsonl, .csv or .txt file",
        )
    for number, value in enumerate(content):
        yield _entry(path, f"entry {number}", value)


def _entry(path: Path, place: str, value: object) -> Row:
    if value is None or isinstance(value, str):
        return Row(place, {"text": value})
    if not isinstance(value, dict):
        raise DataError(
            f"{shown(path)}, {place} is not a JSON object: found {_called(value)}",
            expected='a prompt, or an object such as {"prompt": "..."}',
            remedy='write it as {"prompt": "..."}',
        )
    lowered = [str(name).strip().lower() for name in value]
    _require_column(path, lowered, place)
    if any(lowered.count(name) > 1 for name in (*COLUMNS, *OTHERS)):
        raise _ambiguous(path, list(value), place)
    return Row(place, dict(zip(lowered, value.values(), strict=True)))


def _require_column(path: Path, names: Any, place: str = "") -> None:
    if not any(name in COLUMNS for name in names):
        raise DataError(
            f"{shown(path)}{place and ', '}{place} has the columns {shown(sorted(names))}",
            expected=f"one of {', '.join(COLUMNS)}",
            remedy="rename the column that holds the prompts",
        )


def _ambiguous(path: Path, names: list[str], place: str = "") -> DataError:
    return DataError(
        f"{shown(path)}{place and ', '}{place} has several columns that differ only in case or spaces: {shown(names)}",
        expected="one column of each name",
        remedy="rename or remove the others",
    )


def _called(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
