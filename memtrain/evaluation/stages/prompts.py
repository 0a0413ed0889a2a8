"""Prompts from a file: CSV, plain text, JSON lines or Parquet; or one prompt as it is.

A table holds the prompt in a column `caption`, `prompt` or `text` (in any case; the lists that published work passes
around have `Caption;URL;...` with semicolons), and may say in a column `memorized` (0 or 1) what is known about it, in
`type` how it is memorized (`VM` verbatim, `TM` template in NeMo's list) and in `seed` with which seed it is sampled.
Plain text has one prompt per line (MemAttn's lists). Empty lines are left out. Prompts that repeat are kept: what to do
with them, the stage decides.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.errors import DataError

COLUMNS = ("caption", "prompt", "text")
"""Names of the column with the prompt, in this order of preference."""
SUFFIXES = (".csv", ".txt", ".jsonl", ".parquet")

MEMORIZED, OTHER, UNKNOWN = "memorized", "other", "unknown"
"""Groups of prompts, by what is known about them."""


@dataclass(frozen=True)
class Prompt:
    """A caption to sample, and the image it belongs to.

    Attributes:
        key: of the sample.
        caption: what is sampled.
        group: a group of :mod:`memtrain.records`; other names are reported as groups of training images.
    """

    key: str
    caption: str
    group: str


@dataclass(frozen=True)
class PromptToScore:
    """A prompt, and what is known about it.

    Attributes:
        text: the prompt.
        memorized: the known truth, None where there is none.
        type: how it is memorized, as its file says; None where it does not.
        seed: its own first seed; None for that of all prompts.
        row: of the file it was read from, empty ones counted, from 0.
    """

    text: str
    memorized: bool | None = None
    type: str | None = None
    seed: int | None = None
    row: int = field(default=0, compare=False)


def read_prompts(source: str) -> list[PromptToScore]:
    """The prompts of a file, or `source` itself as the only one.

    Raises:
        DataError: if the file does not exist, cannot be read, lacks the column or holds no prompt.
    """
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES:
        if not source.strip():
            raise DataError("The prompt is empty", expected="a prompt, or a file of prompts", remedy="give one")
        if "/" in source and len(source) < 1000 and path.exists():
            raise DataError(
                f"{source} is a {'folder' if path.is_dir() else 'file'} of a kind that holds no prompts",
                expected=f"a file ({', '.join(SUFFIXES)}), or a prompt",
                remedy="give its name one of these endings, or write the prompts into such a file",
            )
        return [PromptToScore(source.strip())]
    try:
        rows = _rows(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{source} does not exist", expected=f"a file ({', '.join(SUFFIXES)})", remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is not UTF-8: byte {error.start} cannot be read",
            expected="UTF-8 text",
            remedy=f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    except (ValueError, OSError, pa.ArrowException) as error:
        raise DataError(
            f"{source} cannot be read: {error}", expected=f"a {path.suffix} file", remedy="write it again"
        ) from error
    prompts = [_prompt(source, row, number) for number, row in enumerate(rows)]
    prompts = [prompt for prompt in prompts if prompt.text]
    if not prompts:
        raise DataError(f"{source} holds no prompt", expected="at least one", remedy="check the file")
    return prompts


def _rows(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return table
    text = path.read_text(encoding="utf-8-sig")
    if kind == ".txt":
        return [{"text": line} for line in text.splitlines()]
    if kind == ".jsonl":
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in found):
            raise ValueError("a line is no JSON object")
        return found
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") >= max(1, first.count(",")) else ","
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def _prompt(source: str, row: dict[str, Any], number: int) -> PromptToScore:
    lowered = {str(name).strip().lower(): value for name, value in row.items() if name is not None}
    column = next((name for name in COLUMNS if name in lowered), None)
    if column is None:
        raise DataError(
            f"{source} has the columns {sorted(lowered)}",
            expected=f"one of {', '.join(COLUMNS)}",
            remedy="rename the column that holds the prompts",
        )
    kind = str(lowered.get("type") or "").strip()
    return PromptToScore(
        str(lowered[column] or "").strip(),
        _truth(source, lowered.get("memorized")),
        type=kind or None,
        seed=_seed(source, lowered.get("seed")),
        row=number,
    )


def _seed(source: str, value: object) -> int | None:
    """The seed of a line; a column with gaps makes numbers of its own kind of it, such as `3.0`."""
    said = str("" if value is None or value != value else value).strip().removesuffix(".0")
    if not said:
        return None
    if not said.isdecimal():
        raise DataError(
            f"{source} says {value!r} in its column `seed`",
            expected="a whole number from 0",
            remedy="correct the column",
        )
    return int(said)


def _truth(source: str, value: object) -> bool | None:
    if value is None or value == "":
        return None
    known = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
    if str(value).strip().lower() not in known:
        raise DataError(
            f"{source} says {value!r} in its column `memorized`", expected="0 or 1", remedy="correct the column"
        )
    return known[str(value).strip().lower()]


def known_truth(prompts: Sequence[PromptToScore]) -> list[bool] | None:
    """What is known about every prompt, None unless both kinds occur and all are known."""
    truth = [prompt.memorized for prompt in prompts if prompt.memorized is not None]
    return truth if len(truth) == len(prompts) and len(set(truth)) == 2 else None


def group_names(memorized: Sequence[bool | None]) -> list[str]:
    """The group of each prompt."""
    names = {True: MEMORIZED, False: OTHER, None: UNKNOWN}
    return [names[known] for known in memorized]
