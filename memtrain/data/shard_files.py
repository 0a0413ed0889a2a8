"""The files of a sample in a tar shard: the image, the captions, further fields, and gaps left by img2dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from memtrain.data.tar_index import Place
from memtrain.errors import DataError
from memtrain.files.pictures import SUFFIXES, UNDECODED_SUFFIXES

PREFERRED = ("png", "jpg", "jpeg", "webp")
IMAGE_EXTENSIONS = (*PREFERRED, *sorted({suffix[1:] for suffix in SUFFIXES}.difference(PREFERRED)))
"""The extensions of images, in the order of preference."""
UNDECODED = frozenset(suffix[1:] for suffix in UNDECODED_SUFFIXES)
"""The extensions of images that are not decoded."""
MOST_BYTES = 2**24
"""The largest size in bytes of a caption or a .json in a shard."""


def read_bytes(shard: Path, offset: int, size: int) -> bytes:
    """Read a part of a file."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


class ShardFile:
    """Parts of one shard, which is opened once, at the first read. Use it as a context manager.

    Args:
        path: the path of the shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def read(self, place: Place) -> bytes:
        """Read the bytes at a place."""
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(place[0])
        return self._file.read(place[1])

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _text(shard: ShardFile, place: Place) -> bytes:
    """Read a caption or JSON of a limited size.

    Raises:
        ValueError: if it is larger.
    """
    if place[1] > MOST_BYTES:
        raise ValueError(f"it has {place[1]} bytes, more than {MOST_BYTES}")
    return shard.read(place)


def row_of(shard: ShardFile, place: Place) -> dict[str, Any]:
    """Read a .json file; an empty dict if it is not an object.

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        row = json.loads(_text(shard, place), parse_constant=lambda name: None)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return row if isinstance(row, dict) else {}


def is_gap(shard: ShardFile, files: dict[str, Place]) -> bool:
    """Return whether img2dataset lists a sample without an image or a caption."""
    if "json" not in files:
        return False
    empty = "txt" in files and files["txt"][1] < 100 and not shard.read(files["txt"]).strip()
    imageless = not any(extension in files for extension in IMAGE_EXTENSIONS)
    if not (empty or imageless or "txt" not in files):
        return False
    try:
        row = row_of(shard, files["json"])
    except ValueError:
        return False
    if not isinstance(row.get("status"), str):
        return False
    return empty or imageless or row.get("caption", "") in (None, "")


def captions_of(shard: ShardFile, key: str, files: dict[str, Place]) -> list[str]:
    """Return all captions, starting with the one that counts."""
    captions: list[object] = []
    try:
        if "txt" in files:
            captions.append(_text(shard, files["txt"]).decode("utf-8-sig"))
        if "json" in files:
            row = row_of(shard, files["json"])
            if not captions and "caption" in row:
                captions.append(row["caption"])
            several = row.get("captions", [])
            if not isinstance(several, list):
                raise ValueError(f"'captions' is {type(several).__name__}")
            captions += several
            wrong = [type(caption).__name__ for caption in captions if not isinstance(caption, str)]
            if wrong or not captions:
                raise ValueError(f"a caption is {wrong[0]}" if wrong else "there is none")
    except ValueError as error:
        raise DataError(
            f"The caption of sample {key!r} in {shard.path} cannot be read: {error}",
            expected="UTF-8 text in .txt, or JSON with a 'caption' or a list of 'captions'",
            remedy="write the caption again",
        ) from error
    if not captions:
        raise DataError(
            f"Sample {key!r} in {shard.path} has no caption, only {sorted(files)}",
            expected="a .txt file with the caption, or a .json file with a 'caption'",
            remedy="add the caption to the shard",
        )
    return [str(caption) for caption in captions]
