"""Further captions from a file: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain.data.caption_file import read_captions
from memtrain.errors import DataError


def test_captions_by_key_and_blank_lines_left_out(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"key": "a", "captions": ["ein Bär", "zwei"]}\n\n{"key": "b", "captions": []}\n', encoding="utf-8")
    assert read_captions(path) == {"a": ("ein Bär", "zwei"), "b": ()}


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        '{"key": "b"}',
        '{"key": 1, "captions": []}',
        '{"key": "b", "captions": "one text"}',
        '{"key": "b", "captions": [1]}',
        '{"key": "a", "captions": []}',
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"key": "a", "captions": ["x"]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"Line 2 of .* cannot be used"):
        read_captions(path)
