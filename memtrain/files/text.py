"""UTF-8 text and JSON that somebody else wrote.

Accepted: UTF-8 with or without a byte order mark; UTF-16 that begins with one, as Excel's "Unicode text" does; either
compressed where the name ends in `.gz`; any line endings, which become line feeds; JSON as RFC 8259 has it. Refused:
other encodings, NUL characters, NaN and infinity (which JSON does not know), numbers and nesting beyond any use, files
beyond a size, counted after decompressing.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any, NoReturn

from memtrain.errors import DataError

MOST_BYTES = 2**30
"""Size of a text file at most."""


def read_text(path: Path, *, most: int = MOST_BYTES, encoding: str = "utf-8-sig") -> str:
    """The text of a file.

    Args:
        path: of the file.
        most: bytes at most, decompressed.
        encoding: where no mark at its beginning says another; UTF-8 but for readers that know better.

    Raises:
        DataError: if it cannot be read, is too large, is not UTF-8 or holds a NUL character.
    """
    content = _read_bytes(path, most)
    # A mark of UTF-32 begins like one of UTF-16; its NUL characters are refused below.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {'UTF-16' if wide else 'UTF-8'}: byte {error.start} cannot be read",
            expected="UTF-8 text",
            remedy=f"convert it, for instance: iconv -f cp1252 -t utf-8 {path.name}; in Excel, save as CSV UTF-8",
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path} holds a NUL character", expected="text", remedy="save the file as UTF-8 text without it"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path, most: int) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path} cannot be read: {said}", expected="a file that may be read", remedy="check the path"
        ) from error
    if len(content) > most:
        raise DataError(
            f"{path} has more than {most} bytes",
            expected=f"{most} bytes at most",
            remedy="check whether it is the right file",
        )
    return content


def json_of(text: str | bytes, where: str) -> Any:
    """The value that JSON text stands for.

    Args:
        text: JSON.
        where: which file, and which part of it; for the error.

    Raises:
        DataError: if it is no JSON, or nested too deep.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON value")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(f"{digits:.40}")

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where} is not JSON: {said}", expected="JSON (RFC 8259)", remedy="mend it") from error


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """The value that a JSON file holds; :func:`read_text` and :func:`json_of`.

    Raises:
        DataError: if it cannot be read, or is no JSON.
    """
    return json_of(read_text(path, most=most), str(path))


def read_json_object(path: Path, *, what: str, remedy: str) -> dict[str, Any]:
    """The object that a JSON file of ours holds.

    Args:
        path: of the file.
        what: it should hold, such as `the results of detect`.
        remedy: what to do where it does not.

    Raises:
        DataError: if it cannot be read, is no JSON, or holds something else.
    """
    try:
        found = read_json(path)
    except DataError as error:
        raise DataError(error.problem, expected=what, remedy=remedy) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object", expected=what, remedy=remedy)
    return found
