"""UTF-8 text and JSON that somebody else wrote.

Accepted: UTF-8 with or without a byte order mark; JSON as RFC 8259 has it. Refused: other encodings, NUL characters,
NaN and infinity (which JSON does not know), numbers and nesting beyond any use, files beyond a size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from memtrain.errors import DataError

MOST_BYTES = 2**30
"""Size of a text file at most."""


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a file.

    Args:
        path: of the file.
        most: bytes at most.

    Raises:
        DataError: if it cannot be read, is too large, is not UTF-8 or holds a NUL character.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise DataError(
                f"{path} has {size} bytes",
                expected=f"{most} bytes at most",
                remedy="check whether it is the right file",
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} cannot be read",
            expected="UTF-8 text",
            remedy=f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", expected="a file that may be read", remedy="check the path"
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path} holds a NUL character", expected="text", remedy="save the file as UTF-8 text without it"
        )
    return text


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

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where} is not JSON: {said}", expected="JSON (RFC 8259)", remedy="mend it") from error


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """The value that a JSON file holds; :func:`read_text` and :func:`json_of`.

    Raises:
        DataError: if it cannot be read, or is no JSON.
    """
    return json_of(read_text(path, most=most), str(path))
