"""What keys and captions every source takes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data.sample_texts import LONGEST_CAPTION, LONGEST_KEY, require_samples
from memtrain.data.source import Sample
from memtrain.errors import DataError

TEXTS = st.text(st.characters() | st.sampled_from(["\0", "\ud800", "\x1b", "\u202e", "\n"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
def test_whatever_passes_can_be_written_down(pairs):
    samples = [Sample(key, caption) for key, caption in pairs]
    try:
        require_samples(samples, Path("there"))
    except DataError as error:
        assert "there" in error.problem  # noqa: PT017
        assert "\n" not in error.problem  # noqa: PT017
        return
    assert samples
    assert len({one.key for one in samples}) == len(samples)
    for one in samples:
        assert one.caption.strip()
        assert "\0" not in (one.key + one.caption)
        (one.key + one.caption).encode("utf-8")


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        (
            Sample("b", "x" * (LONGEST_CAPTION + 1)),
            r"a caption of more than 20000 characters, first \['b'\]",
        ),
        (Sample("b" * (LONGEST_KEY + 1), "x"), f"a key of more than {LONGEST_KEY} characters"),
        (Sample("b", "x", ("y\0",)), r"a caption that holds a NUL character, first \['b'\]"),
        (Sample("\udcff", "x"), r"a key that is not UTF-8, first \['\\udcff'\]"),
    ],
)
def test_what_is_refused_is_counted(sample, found):
    with pytest.raises(DataError, match=r"1 sample\(s\) in there have " + found):
        require_samples([Sample("a", "x"), sample], Path("there"))


def test_control_characters_are_counted(caplog):
    require_samples([Sample("a", "x\ty\nz"), Sample("b", "\x1b[2J"), Sample("c", "x", ("\x07",))], Path("there"))
    assert "2 of 3 samples in there have control characters" in caplog.text
    assert "['b', 'c']" in caplog.text
