"""UTF-8 text and JSON that somebody else wrote.

Text may be UTF-8 with or without a byte order mark, or UTF-16 with one, such as Excel's "Unicode text". Both may be
compressed, with a name that ends in `.gz`. Any line endings are accepted and become line feeds. JSON is that of RFC
8259. Refused: other encodings, NUL characters, NaN and infinity (which JSON does not have), excessive numbers and
nesting, and files beyond a size, counted after decompressing.
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
"""The largest size of a text file in bytes."""


def read_text(path: Path, *, most: int = MOST_BYTES, encoding: str = "utf-8-sig") -> str:
    """Read the text of a file.

    Args:
        path: the path of the file.
        most: the largest number of bytes, decompressed.
        encoding: the encoding of a file without a byte order mark; UTF-8 except for readers that know better.

    Raises:
        DataError: if it cannot be read, is too large, is not UTF-8 or holds a NUL character.
    """
    content = _read_bytes(path, most)
    # A mark of UTF-32 begins like one of UTF-16. Its NUL characters are refused later in this function.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {'UTF-16' if wide else 'UTF-8'}: byte {error.start} cannot be read",
            expected="UTF-8 text",
            remedy=f"convert it, for instance with iconv -f cp1252 -t utf-8 {path.name}; in Excel, save as CSV UTF-8",
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
            f"{path} cannot be read: {said}", expected="a file that you may read", remedy="check the path"
        ) from error
    if len(content) > most:
        raise DataError(
            f"{path} has more than {most} bytes",
            expected=f"at most {most} bytes",
            remedy="check whether it is the right file",
        )
    return content


def json_of(text: str | bytes, where: str) -> Any:
    """Return the value of JSON text.

    Args:
        text: the JSON text.
        where: the file and the part of it, for the error.

    Raises:
        DataError: if it is not JSON, or is nested too deep.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON value")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(f"{digits:.40}")

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(
            f"{where} is not JSON: {said}", expected="JSON (RFC 8259)", remedy="correct the JSON"
        ) from error


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """Return the value of a JSON file; see :func:`read_text` and :func:`json_of`.

    Raises:
        DataError: if it cannot be read, or is not JSON.
    """
    return json_of(read_text(path, most=most), str(path))


def read_json_object(path: Path, *, what: str, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file of memtrain.

    Args:
        path: the path of the file.
        what: the expected content, such as `the results of detect`.
        remedy: the remedy in the error.

    Raises:
        DataError: if it cannot be read, is not JSON, or holds something else than an object.
    """
    try:
        found = read_json(path)
    except DataError as error:
        raise DataError(error.problem, expected=what, remedy=remedy) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} does not hold a JSON object", expected=what, remedy=remedy)
    return found
