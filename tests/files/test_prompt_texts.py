"""Prompts from lists, arrays and columns, or a refusal in words of memtrain."""

from typing import Any

import numpy as np
import pytest

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.prompt_texts import MOST, missing, prompt_list, prompt_stream, prompt_text


class Series:
    """What pandas' column does here: it knows `tolist`, and refuses to be true or false."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def tolist(self) -> list[Any]:
        return self.values

    def __iter__(self) -> Any:
        return iter(self.values)

    def __bool__(self) -> bool:
        raise ValueError("The truth value of a Series is ambiguous")


@pytest.mark.parametrize(
    "prompts",
    [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], object), Series(["a", "b"]), iter(["a", "b"])],
)
def test_whatever_lists_prompts(prompts: Any) -> None:
    found = prompt_list(prompts)
    assert found == ["a", "b"]
    assert all(type(one) is str for one in found)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a fox", r"prompts is 'a fox' \(str\)"),
        ({"a": 1}, "dict"),
        (3, "int"),
        (None, "NoneType"),
        (np.array([["a"], ["b"]]), r"prompts\[0\] is not a text: \['a'\] \(list\)"),
        (["a", float("nan")], r"prompts\[1\] is not a text: nan \(float\)"),
        (np.array([1, 2]), r"prompts\[0\] is not a text: 1"),
        (["a\ud800"], "surrogate"),
    ],
)
def test_what_is_no_list_of_prompts(prompts: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        prompt_list(prompts)


def test_a_single_text_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigurationError, match="write \\[prompt\\]"):
        prompt_stream("a fox")


def test_missing_is_not_the_word() -> None:
    assert [missing(value) for value in (None, float("nan"), np.float64("nan"))] == [True] * 3
    assert [missing(value) for value in ("nan", "None", "", 0, 0.0)] == [False] * 5


def test_files_hold_prompts_of_some_length_without_nul() -> None:
    assert prompt_text("a" * MOST, "row 1") == "a" * MOST
    for text in ("a" * 1_000_000, "a\0b"):
        with pytest.raises(DataError, match="row 1") as found:
            prompt_text(text, "row 1")
        assert len(str(found.value)) < 400
