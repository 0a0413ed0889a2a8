"""Strangers' text on a terminal."""

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from memtrain.errors import MemtrainError
from memtrain.files.shown import MOST, inert, shown


def test_escape_sequences_and_marks_are_written_out() -> None:
    assert shown("a\x1b]0;title\x07 \u202etxt\nnext") == r"a\x1b]0;title\x07 \u202etxt\nnext"
    assert shown("赤い狐, naïve") == "赤い狐, naïve"


@given(st.text(max_size=2 * MOST))
def test_no_text_acts(text: str) -> None:
    found = shown(text)
    assert found.isprintable() and len(found.splitlines()) <= 1
    assert not any(unicodedata.category(one) in ("Cc", "Cf", "Cs") for one in found)


@given(st.text(max_size=60))
def test_a_page_keeps_what_only_stands_there(text: str) -> None:
    found = inert(text)
    found.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", found)
    assert inert(found) == found


def test_a_page_keeps_joined_letters_and_emoji() -> None:
    text = "<p>क्\u200dष \U0001f468\u200d\U0001f469\u200d\U0001f467</p>\n\t"
    assert inert(text) == text


def test_errors_do_not_act_on_a_terminal() -> None:
    error = MemtrainError("a\x1b[2J\x07\nb\u202e", expected="c\r", remedy="d\ud800")
    assert str(error) == "a\\x1b[2J\\x07\nb\\u202e\n  Expected: c\\r\n  Remedy: d\\ud800"
    assert error.problem == "a\x1b[2J\x07\nb\u202e", "other errors may be made of it"
