"""A file with further captions of samples: JSON lines `{"key": ..., "captions": [...]}`.

Text must be UTF-8, each key occurs once, and captions are texts. Other lines are refused with their number.
"""

from __future__ import annotations

from pathlib import Path

from memtrain.errors import DataError
from memtrain.files.text import json_of, read_text

EXAMPLE = '{"key": "...", "captions": ["...", ...]}'
"""An example of a line."""


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Read captions by sample key from JSON lines `{"key": ..., "captions": [...]}`.

    Raises:
        DataError: if a line has another form, or if a key occurs twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json_of(line, f"Line {number} of {path}")
            key, captions = row["key"], row["captions"]
            fits = isinstance(captions, list) and all(isinstance(text, str) for text in [key, *captions])
        except (DataError, KeyError, TypeError):
            fits = False
        if not fits or key in found:
            raise DataError(
                f"Line {number} of {path} cannot be used: {line[:80]!r}",
                expected=f"{EXAMPLE}, each key once",
                remedy="correct the line",
            )
        found[key] = tuple(captions)
    return found
