"""Rows of files of prompts; the kinds are tried out in tests/evaluation/stages/test_prompts.py."""

from pathlib import Path

import pytest

from memtrain.errors import DataError
from memtrain.files.prompt_file import SUFFIXES, kind_of, prompt_of, read_rows
from memtrain.files.sheet_cells import write_cells


def test_the_ending_says_the_kind() -> None:
    assert [kind_of(Path(name)) for name in ("a.CSV", "a.csv.gz", "a.txt.GZ", "a.gz", "a", "csv")] == [
        *(".csv", ".csv", ".txt"),
        *(None, None, None),
    ]
    assert all(kind_of(Path(f"a{suffix}")) for suffix in SUFFIXES)


def test_text_without_an_ending_has_a_prompt_in_each_line(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a\n\nb")
    assert [(row.place, prompt_of("prompts", row)) for row in read_rows(tmp_path / "prompts")] == [
        ("line 1", "a"),
        ("line 2", None),
        ("line 3", "b"),
    ]


@pytest.mark.parametrize("column", ["key", "line", "row"])
def test_tables_of_memtrain_give_prompts_back_and_others_stay_as_they_are(tmp_path: Path, column: str) -> None:
    prompt = "=cmd\x1b and \\x1b"
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        write_cells(file, (column, "prompt"), [("1", prompt)])
    assert [prompt_of("p.csv", row) for row in read_rows(tmp_path / "p.csv")] == [prompt]
    (tmp_path / "other.csv").write_text("prompt\n'=cmd\n")
    assert [prompt_of("p.csv", row) for row in read_rows(tmp_path / "other.csv")] == ["'=cmd"]


def test_a_folder_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)
