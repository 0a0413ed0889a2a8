"""Strangers' text on a terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from memtrain.files.shown import MOST, shown


def test_escape_sequences_and_marks_are_written_out() -> None:
    assert shown("a\x1b]0;title\x07 \u202etxt\nnext") == r"a\x1b]0;title\x07 \u202etxt\nnext"
    assert shown("赤い狐, naïve") == "赤い狐, naïve"


@given(st.text(max_size=2 * MOST))
def test_no_text_acts(text: str) -> None:
    found = shown(text)
    assert found.isprintable() and len(found.splitlines()) <= 1
    assert not any(unicodedata.category(one) in ("Cc", "Cf", "Cs") for one in found)
