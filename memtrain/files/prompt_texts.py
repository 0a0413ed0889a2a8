"""Prompts as somebody else has them: strings, a list of them, or a column of a data frame.

Accepted: text of at most 10,000 characters; of lists also arrays of numpy and columns of pandas. Missing, and not text:
None and what is not equal to itself (NaN, which pandas puts in empty cells). The words "nan" and "None" are text.
Refused: other values, one text where a list is expected, NUL characters, halves of surrogate pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.shown import shown

MOST = 10_000
"""Characters of a prompt at most; text encoders read some hundreds."""


def missing(value: object) -> bool:
    """Whether a value stands for none: None, NaN, and the like of data frames."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def prompt_text(value: object, where: str) -> str:
    """A prompt, if it is one.

    Args:
        value: what a file or an argument says.
        where: it says so, for the error.

    Raises:
        DataError: if it is no text, or holds what no prompt can hold.
    """
    if not isinstance(value, str):
        raise DataError(
            f"{where} is no text: {shown(repr(value), most=80)} ({type(value).__name__})",
            expected="text",
            remedy="write the prompt itself; a row without one may be left empty",
        )
    if len(value) > MOST:
        raise DataError(
            f"{where} has {len(value)} characters: {shown(value, most=60)}",
            expected=f"a prompt of at most {MOST}",
            remedy="check where it ends (in tables: the quotes), or shorten it",
        )
    if "\0" in value or any("\ud800" <= one <= "\udfff" for one in value):
        raise DataError(
            f"{where} holds a NUL character or half a character (a surrogate): {shown(value, most=60)}",
            expected="Unicode text",
            remedy="remove it",
        )
    return str(value)


def prompt_list(prompts: Iterable[Any], *, name: str = "prompts") -> list[str]:
    """Prompts as a list of texts.

    Args:
        prompts: a list or tuple, an array of numpy, a column of a data frame.
        name: of the argument, for the error.

    Raises:
        ConfigurationError: if it is no list of texts.
    """
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable) or hasattr(prompts, "columns"):
        raise ConfigurationError(
            f"{name} is {shown(repr(prompts), most=80)} ({type(prompts).__name__})",
            expected="a list of prompts",
            remedy="write [prompt] for a single one; of a data frame, give the column with the prompts",
        )
    values = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
    # An array without dimensions becomes a single value.
    found = values if isinstance(values, list) else [values]
    try:
        return [prompt_text(value, f"{name}[{place}]") for place, value in enumerate(found)]
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error
