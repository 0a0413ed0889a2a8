"""Prompts from a file, or a single prompt.

A file is of one of the kinds of :mod:`memtrain.files.prompt_file`. A table holds the prompt in a column
`caption`, `prompt` or `text` (in any case; published lists have `Caption;URL;...` with semicolons). Three more columns
are optional: `memorized` (0 or 1) with what is known, `type` with the kind of memorization (`VM` verbatim, `TM`
template in NeMo's list) and `seed` with the seed of its sampling. Plain text has one prompt per line
(MemAttn's lists). Repeated prompts are kept, and the stage decides what to do with them.

Rows whose prompt is empty or missing (null, NaN) are left out and counted; the words "nan" and "None" are prompts.
Refused: prompts that are no text (:mod:`memtrain.files.prompt_texts`), columns that contradict each other, and a path
of anything else, which would be scored as if it were the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memtrain.errors import DataError
from memtrain.files.prompt_file import SUFFIXES, Row, kind_of, prompt_of, read_rows
from memtrain.files.prompt_texts import missing, prompt_list, prompt_text
from memtrain.files.shown import shown
from memtrain.files.text import json_of

FILE_SUFFIXES = re.compile(
    "arrow|bz2|ckpt|conf|css|csv|dat|db|docx?|feather|gif|gz|h5|html?|ini|ipynb|jpe?g|jsonl?|log|lst|md|np[yz]|ods|"
    "parquet|pdf|pickle|pkl|png|pth?|py|rtf|safetensors|sqlite|tar|tgz|toml|tsv|txt|webp|xls[xm]?|xml|xz|ya?ml|zip|zst"
)
"""Common endings of files, which do not end a prompt of several words."""

FLAGGED_CSV = "flagged.csv"
"""Name of the list of flagged samples that a training writes. The list has no row if nothing was flagged."""
MEMORIZED, OTHER, UNKNOWN = "memorized", "other", "unknown"
"""Groups of prompts by their known truth."""


@dataclass(frozen=True)
class Prompt:
    """A caption to sample, and its image.

    Attributes:
        key: the key of the sample.
        caption: the caption to sample.
        group: a group of :mod:`memtrain.records`; other names are reported as groups of training images.
    """

    key: str
    caption: str
    group: str


@dataclass(frozen=True)
class PromptToScore:
    """A prompt, and its known truth.

    Attributes:
        text: the prompt.
        memorized: the known truth; None if it is not known.
        type: the kind of memorization in the file; None if the file has none.
        seed: the prompt's own first seed; None for the seed of all prompts.
        row: the row of the file, from 0, with empty rows counted.
    """

    text: str
    memorized: bool | None = None
    type: str | None = None
    seed: int | None = None
    row: int = field(default=0, compare=False)


@dataclass(frozen=True)
class PromptsRead:
    """Content of a file of prompts, or a single prompt.

    Attributes:
        source: the path, or the prompt.
        prompts: the prompts in the order of the file.
        rows: the number of rows of the file; None for a single prompt.
        left_out: the places of rows without a prompt.
    """

    source: str
    prompts: list[PromptToScore]
    rows: int | None = None
    left_out: tuple[str, ...] = ()

    def line(self) -> str:
        """Describe the read and left-out rows, for the screen; empty for a single prompt."""
        if self.rows is None:
            return ""
        said = f"{len(self.prompts)} prompts read from {shown(self.source)}"
        if self.left_out:
            said += (
                f"; {len(self.left_out)} of {self.rows} rows have no prompt and are left out, first {self.left_out[0]}"
            )
        return said


def read_prompts(source: str) -> list[PromptToScore]:
    """Read the prompts of a file, or take `source` as the only prompt; see :func:`prompts_read`."""
    return prompts_read(source).prompts


def prompts_read(source: str) -> PromptsRead:
    """Read the prompts of a file, or take `source` as the only prompt, and note the left-out rows.

    Raises:
        DataError: if the file does not exist, cannot be read, lacks the column or holds no prompt. Also if `source` is,
            or looks like, another path.
    """
    if not source.strip():
        raise DataError(
            "The prompt is empty", expected="a prompt, or a file of prompts", remedy="name one with --prompts"
        )
    path = Path(source)
    if kind_of(path) is None:
        _refuse_path(source, path)
        return PromptsRead(source, [PromptToScore(prompt_text(source, "The prompt").strip())])
    there = _there(path)
    if not there or path.is_dir():
        raise DataError(
            f"{shown(source)} {'is a folder' if there else 'does not exist'}",
            expected=f"a file ({', '.join(SUFFIXES)})",
            remedy="check the path",
        )
    rows = read_rows(path)
    prompts, left_out = [], []
    for number, row in enumerate(rows):
        found = _prompt(source, row, number)
        if found is None:
            left_out.append(row.place)
        else:
            prompts.append(found)
    if not prompts:
        raise _no_prompt(source, len(rows))
    return PromptsRead(source, prompts, len(rows), tuple(left_out))


def _no_prompt(source: str, rows: int) -> DataError:
    """Return the error about a file without a prompt."""
    said, remedy = "it has no row", "write prompts into the file, or name another file with --prompts"
    if rows:
        said = "its only row has no text" if rows == 1 else f"its {rows} rows have no text"
    elif Path(source).name == FLAGGED_CSV:
        said = "nothing was flagged, so there is nothing to score"
        remedy = "name other prompts with --prompts, or train for longer"
    return DataError(f"{shown(source)} holds no prompt: {said}", expected="at least one prompt", remedy=remedy)


def as_prompts(prompts: Iterable[PromptToScore | str]) -> Sequence[PromptToScore]:
    """Convert prompts or texts of a caller to prompts to score.

    Args:
        prompts: a list, an array or a column of a data frame, with prompts or texts.

    Raises:
        ConfigurationError: if `prompts` is no list, or an item is neither a prompt nor a text.
    """
    if isinstance(prompts, (list, tuple)) and all(isinstance(one, PromptToScore) for one in prompts):
        return prompts
    if isinstance(prompts, (list, tuple)):
        return [one if isinstance(one, PromptToScore) else PromptToScore(prompt_list([one])[0]) for one in prompts]
    return [PromptToScore(text) for text in prompt_list(prompts)]


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _refuse_path(source: str, path: Path) -> None:
    """Refuse a path, or a text that looks like one, because it would be scored as a prompt."""
    text = source.strip()
    # A single word may have any suffix; several words only a common ending of files.
    named = re.search(r"(?<=[^\s.])\.([A-Za-z][A-Za-z0-9]{1,9})(?:\.(?:gz|bz2|xz|zst|zip))?$", text)
    word = not re.search(r"\s", text)
    if _there(path) or _there(Path(text)):
        what = f"is a {'folder' if path.is_dir() or Path(text).is_dir() else 'file'}"
    elif named and (word or FILE_SUFFIXES.fullmatch(named[1].lower())):
        what = "looks like the name of a file"
    elif word and (re.match(r"(?:[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\])", text) or text.endswith(("/", "\\"))):
        what = "looks like a path"
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        what = "looks like an address"
    elif text[0] in "[{" and _is_json(text):
        what = "looks like JSON"
    elif word and "/" in text and len(text) < 1000 and _there(Path(text).parent):
        what = "looks like a path in an existing folder"
    else:
        return
    raise DataError(
        f"{shown(source, most=200)} {what}, and prompts are not read from it",
        expected=f"a file ({', '.join(SUFFIXES)}), or a prompt",
        remedy="write the prompts to a .txt file, one per line; also a prompt that looks like a path",
    )


def _is_json(text: str) -> bool:
    try:
        return isinstance(json_of(text, ""), (list, dict))
    except DataError:
        return False


def _prompt(source: str, row: Row, number: int) -> PromptToScore | None:
    """Read the prompt of a row; None if it has none."""
    where = f"{shown(source)}, {row.place}"
    text = prompt_of(source, row)
    if text is None:
        return None
    kind = row.values.get("type")
    if missing(kind):
        kind = ""
    if not isinstance(kind, (str, int)):
        raise DataError(
            f"{where} says {shown(kind, most=60)} in its column `type`",
            expected="a word",
            remedy="correct the column `type`",
        )
    return PromptToScore(
        text,
        _truth(where, row.values.get("memorized")),
        type=str(kind).strip() or None,
        seed=_seed(where, row.values.get("seed")),
        row=number,
    )


def _said(value: object) -> str:
    """Read a value of a column of numbers as text; empty if it is missing, also as a text such as `nan`."""
    text = "" if missing(value) else str(value).strip().lower()
    return "" if text in ("nan", "none", "null", "na", "<na>") else text


def _seed(where: str, value: object) -> int | None:
    """Read the seed of a line; a column with gaps can hold numbers such as `3.0`."""
    said = _said(value).removesuffix(".0")
    if not said:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", said) or int(said) >= 2**63:
        raise DataError(
            f"{where} says {shown(repr(value), most=60)} in its column `seed`",
            expected="a whole number from 0 to 2^63 - 1",
            remedy="correct the column",
        )
    return int(said)


def _truth(where: str, value: object) -> bool | None:
    said = _said(value)
    known = {"": None, "1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
    if said not in known:
        raise DataError(
            f"{where} says {shown(repr(value), most=60)} in its column `memorized`",
            expected="0 or 1",
            remedy="correct the column",
        )
    return known[said]


def known_truth(prompts: Sequence[PromptToScore]) -> list[bool] | None:
    """Return the truth of every prompt; None unless all are known and both kinds occur."""
    truth = [prompt.memorized for prompt in prompts if prompt.memorized is not None]
    return truth if len(truth) == len(prompts) and len(set(truth)) == 2 else None


def group_names(memorized: Sequence[bool | None]) -> list[str]:
    """Return the group of each prompt."""
    names = {True: MEMORIZED, False: OTHER, None: UNKNOWN}
    return [names[known] for known in memorized]
