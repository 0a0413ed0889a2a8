"""Prompts of the user: strings, a list of strings, or a column of a data frame.

Accepted: text, in files of at most 10,000 characters; lists, arrays of numpy and columns of pandas. None and values
that are not equal to themselves (NaN, which pandas puts in empty cells) count as missing. The words "nan" and "None"
are text. Refused: other values, one text where a list is expected, halves of surrogate pairs; in files also NUL
characters and longer texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.shown import shown

MOST = 10_000
"""The largest number of characters of a prompt; text encoders read a few hundred."""


_HALF = re.compile("[\ud800-\udfff]")


def missing(value: object) -> bool:
    """Return whether a value counts as missing: None, NaN, and the missing values of data frames."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def prompt_text(value: object, where: str) -> str:
    """Return the prompt of a file.

    Args:
        value: the value in the file.
        where: the place of the value, for the error.

    Raises:
        DataError: if the value is not a text, or holds something that a prompt cannot hold.
    """
    text = _text(value, where)
    if len(text) > MOST:
        raise DataError(
            f"{where} has {len(text)} characters: {shown(text, most=60)}",
            expected=f"a prompt of at most {MOST} characters",
            remedy="check where it ends (in tables: the quotes), or shorten it",
        )
    if "\0" in text:
        raise DataError(
            f"{where} holds a NUL character: {shown(text, most=60)}", expected="Unicode text", remedy="remove it"
        )
    return text


def prompt_list(prompts: Iterable[Any], *, name: str = "prompts") -> list[str]:
    """Return prompts as a list of texts; see :func:`prompt_stream`."""
    return list(prompt_stream(prompts, name=name))


def prompt_stream(prompts: Iterable[Any], *, name: str = "prompts") -> Iterator[str]:
    """Return an iterator over prompts.

    Args:
        prompts: a list or tuple, an array of numpy, a column of a data frame, or another iterable of texts.
        name: the name of the argument, for the error.

    Raises:
        ConfigurationError: at once if it is not a list, and later at a value that is not a text.
    """
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable) or hasattr(prompts, "columns"):
        raise ConfigurationError(
            f"{name} is {shown(repr(prompts), most=80)} ({type(prompts).__name__})",
            expected="a list of prompts",
            remedy="write [prompt] for a single prompt; from a data frame, pass the column with the prompts",
        )
    values = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    # An array without dimensions becomes a single value.
    return _texts([values] if isinstance(values, str) or not isinstance(values, Iterable) else values, name)


def _texts(values: Iterable[Any], name: str) -> Iterator[str]:
    for place, value in enumerate(values):
        try:
            yield _text(value, f"{name}[{place}]")
        except DataError as error:
            raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where} is not a text: {shown(repr(value), most=80)} ({type(value).__name__})",
            expected="text",
            remedy="write the prompt itself, or remove the row",
        )
    if _HALF.search(value):
        raise DataError(
            f"{where} holds half a character (a surrogate): {shown(value, most=60)}",
            expected="Unicode text",
            remedy="remove it",
        )
    return str(value)
