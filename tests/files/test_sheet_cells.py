"""Cells that act neither in a spreadsheet nor on a terminal, and are read again as they were."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.files.sheet_cells import cell_of, safe_cell, write_cells


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", "'=1", "\uff1d1"])
def test_formulas_are_text(text: str) -> None:
    assert safe_cell(text) == "'" + text


def test_terminals_and_readers_are_left_alone() -> None:
    assert safe_cell("a\x1b]0;t\x07\u202eb\ud800\nc") == r"a\x1b]0;t\x07\u202eb\ud800" + "\nc"
    assert [safe_cell(value) for value in ("it's", "a-b", r"C:\x41", -1.5, None)] == [
        "it's",
        "a-b",
        r"C:\x41",
        -1.5,
        None,
    ]


texts = st.text(max_size=8) | st.text(alphabet=st.sampled_from("'=-\\xu1b20e\x1b\u202e\t\n"), max_size=14)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_any_text_comes_back(text: str) -> None:
    cell = safe_cell(text)
    assert isinstance(cell, str)
    assert cell_of(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) and "\x1b" not in cell and "\u202e" not in cell


def test_a_table_can_be_encoded() -> None:
    file = io.StringIO(newline="")
    write_cells(file, ("key", "n"), [("=a\ud800", -1), ("b", None)])
    file.getvalue().encode()
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [["key", "n"], [r"'=a\ud800", "-1"], ["b", ""]]
