"""Images that are too many for memory: kept in one file, written block by block, read where they lie.

`images.safetensors` of the folder holds `images` `(N, 3, H, W)` uint8 and is mapped into memory: the system keeps what
is in use and drops the rest, so 10,000 pictures of 512 px (7.9 GB) cost as much memory as those that are looked at.
`identity.json` says of what they are, as the caller names it; a folder of something else is refused, never filled over.
`blocks.json` says which blocks are complete. It is written after the pixels have reached the disk, so a writing that is
killed goes on with the first block that was not, and what lies in the folder is what one writing at a stretch leaves.

Cost: one pass over the images; 3 H W bytes of disk for each, which are asked for before the first is read. Cannot:
compress them, because what is compressed cannot be mapped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError, RecordError
from memtrain.families.stored_arrays import Arrays, create_arrays, open_arrays
from memtrain.files.progress import progress_bar
from memtrain.files.text import read_json
from memtrain.records import write_json, written_whole

BLOCK_BYTES = 1 << 26
"""Of images that are read between two writings of what is complete."""


class StoredBlocks:
    """Arrays in a file with equally many rows, of which blocks of rows are complete or not.

    Args:
        folder: of the file; made if it is not there.
        shapes: type and shape by name; the first number of each shape is the same N.
        identity: everything that the numbers depend on, as JSON can hold it.
        block: rows that are written together.
        name: of the file, without suffix.

    Attributes:
        arrays: mapped; writing to them writes to the file.

    Raises:
        ConfigurationError: if the folder holds something else, or the disk has no room.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[str, tuple[int, ...]]],
        identity: Mapping[str, Any],
        *,
        block: int,
        name: str = "images",
    ) -> None:
        self.folder, self._path = folder, folder / f"{name}.safetensors"
        self._count, self._block = next(iter(shapes.values()))[1][0], block
        plain = {key: [kind, list(shape)] for key, (kind, shape) in shapes.items()}
        said = json.loads(json.dumps({"arrays": plain, "block": block, "identity": identity}, sort_keys=True))
        known = read_object(folder / "identity.json")
        if known is None:
            self._require_room(shapes)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "blocks.json").unlink(missing_ok=True)
            with written_whole(self._path) as unfinished:
                create_arrays(unfinished, shapes)
                _reserve(unfinished, self.folder)
            write_json(said, folder / "identity.json")
        elif known != said:
            differing = _difference(known, said)
            raise ConfigurationError(
                f"{folder} holds images of other settings: {differing}",
                expected="an empty folder, or one that the same settings began to fill",
                remedy="name another folder, or delete this one",
            )
        if not self._path.is_file():
            raise RecordError(f"{self._path} is gone", expected="the file that identity.json tells of", remedy=_DELETE)
        self.arrays: Arrays = open_arrays(self._path, mode="r+")
        self._done: set[int] = set((read_object(folder / "blocks.json") or {}).get("complete", ()))

    def missing(self) -> list[range]:
        """Rows of the blocks that are not complete, in order."""
        blocks = (self._count + self._block - 1) // self._block
        parts = (range(one * self._block, min((one + 1) * self._block, self._count)) for one in range(blocks))
        return [part for number, part in enumerate(parts) if number not in self._done]

    def complete(self, rows: range) -> None:
        """Say of a block from :meth:`missing`, whose rows were put into `arrays`, that it is complete."""
        for array in self.arrays.values():
            # Not the numbers of this block alone: a map is written back as a whole, and the rest has not changed.
            getattr(array, "flush", lambda: None)()
        self._done.add(rows.start // self._block)
        write_json({"complete": sorted(self._done)}, self.folder / "blocks.json")

    def _require_room(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        sizes = {"uint8": 1, "int32": 4, "float32": 4, "int64": 8}
        needed = sum(sizes[kind] * int(torch.Size(shape).numel()) for kind, shape in shapes.values())
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed > free:
            raise ConfigurationError(
                f"{self.folder} needs {needed / 1e9:.1f} GB on a disk with {free / 1e9:.1f} GB left",
                expected="room for every image, uncompressed",
                remedy=_ROOM,
            )


_DELETE = "delete the folder; the images are made again"
_ROOM = "free some, name a folder on another disk, or take fewer or smaller images"


def _reserve(path: Path, folder: Path) -> None:
    """Take the room of a file that so far is a hole: where the disk is full, writing to a map ends the process."""
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot take {path.stat().st_size / 1e9:.1f} GB: {error.strerror}",
            expected="room for every image, uncompressed",
            remedy=_ROOM,
        ) from error


def stored_images(
    folder: Path,
    count: int,
    size: tuple[int, int],
    read: Callable[[int], Tensor],
    identity: Mapping[str, Any],
    *,
    workers: int = 1,
    progress: bool = True,
) -> Tensor:
    """Images read once and kept in a file.

    Args:
        folder: of the file; that of an earlier call with the same arguments gives its images back, and goes on where it
            was killed.
        count: N.
        size: height and width.
        read: the image of a row, `(3, H, W)` uint8.
        identity: what the images depend on (files with their sizes and times, crops), as JSON can hold it.
        workers: threads that read.
        progress: show a progress bar.

    Returns:
        `(N, 3, H, W)` uint8, mapped from the file. What is changed in it stays in memory.

    Raises:
        ConfigurationError: if the folder holds images of something else, or the disk has no room.
        DataError: if an image has another size or type.
    """
    shape = (3, *size)
    block = max(1, BLOCK_BYTES // (3 * size[0] * size[1]))
    blocks = StoredBlocks(folder, {"images": ("uint8", (count, *shape))}, identity, block=block)
    missing = blocks.missing()
    bar = progress_bar(total=sum(map(len, missing)), desc="images", unit="image", disable=not progress or not missing)
    with bar, ThreadPoolExecutor(workers) as pool:
        for rows in missing:
            for row, image in zip(rows, pool.map(read, rows), strict=True):
                if tuple(image.shape) != shape or image.dtype != torch.uint8:
                    raise DataError(
                        f"Image {row} is {tuple(image.shape)} of {image.dtype}",
                        expected=f"{shape} of torch.uint8",
                        remedy="make all images of one size before they are compared",
                    )
                blocks.arrays["images"][row] = image.numpy()
            blocks.complete(rows)
            bar.update(len(rows))
    return mapped_images(folder)


def mapped_images(folder: Path, *, name: str = "images") -> Tensor:
    """The images of a folder that :func:`stored_images` has filled, `(N, 3, H, W)` uint8."""
    return torch.from_numpy(open_arrays(folder / f"{name}.safetensors")["images"])


def mapped_features(folder: Path) -> Tensor:
    """The array `features` of a folder that :class:`StoredBlocks` has filled, `(N, ...)`."""
    return torch.from_numpy(open_arrays(folder / "features.safetensors")["features"])


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object of a folder of images; None if the file is not there.

    Raises:
        RecordError: if it holds something else.
    """
    try:
        content = read_json(path)
    except DataError as error:
        if not path.exists():
            return None
        raise RecordError(error.problem, expected="JSON", remedy=_DELETE) from error
    if not isinstance(content, dict):
        raise RecordError(f"{path} holds no object", expected="JSON of stored images", remedy=_DELETE)
    return content


def _difference(known: Mapping[str, Any], said: Mapping[str, Any], *, place: str = "") -> str:
    """The first setting in which two differ, with both values."""
    for key in sorted({*known, *said}):
        one, other = known.get(key), said.get(key)
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            return _difference(one, other, place=f"{place}{key}.")
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            at = next(index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
            return f"{place}{key}[{at}] was {one[at]!r} and is {other[at]!r}"
        return f"{place}{key} was {str(one)[:80]} and is {str(other)[:80]}"
    return "nothing"
