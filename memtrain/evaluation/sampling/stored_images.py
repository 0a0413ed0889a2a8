"""Images that are too many for memory: kept in one file, written block by block, and read from the mapped file.

`images.safetensors` of the folder holds `images` `(N, 3, H, W)` uint8 and is mapped into memory. The system keeps only
the parts in use in memory, so 10,000 pictures of 512 px (7.9 GB) cost as much memory as the pictures in use.
`identity.json` holds everything that the images depend on, as the caller names it; a folder of other images is refused
and never overwritten. `blocks.json` lists the complete blocks. It is written after the pixels have reached the disk, so
an interrupted run continues with the first incomplete block. The folder then holds the same as after a run without
interruption.

Cost: one pass over the images; 3 H W bytes of disk for each, reserved before the first is read. Cannot: compress the
images, because a compressed file cannot be mapped.
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
"""Bytes of images that are read between two updates of `blocks.json`."""


class StoredBlocks:
    """Arrays in a file with equally many rows, of which blocks of rows are complete or not.

    Args:
        folder: folder of the file; made if it does not exist.
        shapes: type and shape by name; the first number of each shape is the same N.
        identity: everything that the numbers depend on, as JSON can hold it.
        block: rows that are written together.
        name: name of the file, without suffix.

    Attributes:
        arrays: mapped arrays; writing to them writes to the file.

    Raises:
        ConfigurationError: if the folder holds something else, or the disk is too small.
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
                f"{folder} holds images with other settings: {differing}",
                expected="an empty folder, or one from a run with the same settings",
                remedy="name another folder, or delete this one",
            )
        if not self._path.is_file():
            raise RecordError(
                f"{self._path} is missing", expected="the file that identity.json describes", remedy=_DELETE
            )
        self.arrays: Arrays = open_arrays(self._path, mode="r+")
        self._done: set[int] = set((read_object(folder / "blocks.json") or {}).get("complete", ()))

    def missing(self) -> list[range]:
        """Rows of the blocks that are not complete, in order."""
        blocks = (self._count + self._block - 1) // self._block
        parts = (range(one * self._block, min((one + 1) * self._block, self._count)) for one in range(blocks))
        return [part for number, part in enumerate(parts) if number not in self._done]

    def complete(self, rows: range) -> None:
        """Mark a block from :meth:`missing`, whose rows were put into `arrays`, as complete."""
        for array in self.arrays.values():
            # A map is written back as a whole; the numbers of other blocks have not changed.
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
                f"{self.folder} needs {needed / 1e9:.1f} GB on a disk with {free / 1e9:.1f} GB free",
                expected="space for every image, uncompressed",
                remedy=_ROOM,
            )


_DELETE = "delete the folder; the images are made again"
_ROOM = "free space, name a folder on another disk, or use fewer or smaller images"


def _reserve(path: Path, folder: Path) -> None:
    """Reserve the disk space of a sparse file: on a full disk, writing to a map ends the process."""
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot take {path.stat().st_size / 1e9:.1f} GB: {error.strerror}",
            expected="space for every image, uncompressed",
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
    """Read images once and keep them in a file.

    Args:
        folder: folder of the file. The folder of an earlier call with the same arguments gives its images back, and an
            interrupted call continues.
        count: number of images, N.
        size: height and width.
        read: function from a row to its image, `(3, H, W)` uint8.
        identity: everything that the images depend on (files with their sizes and times, crops), as JSON can hold it.
        workers: number of threads that read.
        progress: whether a progress bar is shown.

    Returns:
        `(N, 3, H, W)` uint8, mapped from the file. Changes to it stay in memory.

    Raises:
        ConfigurationError: if the folder holds other images, or the disk is too small.
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
                        f"Image {row} has shape {tuple(image.shape)} and type {image.dtype}",
                        expected=f"shape {shape} and type torch.uint8",
                        remedy="bring all images to one size before they are compared",
                    )
                blocks.arrays["images"][row] = image.numpy()
            blocks.complete(rows)
            bar.update(len(rows))
    return mapped_images(folder)


def mapped_images(folder: Path, *, name: str = "images") -> Tensor:
    """Return the images of a folder that :func:`stored_images` has filled, `(N, 3, H, W)` uint8."""
    return torch.from_numpy(open_arrays(folder / f"{name}.safetensors")["images"])


def mapped_features(folder: Path) -> Tensor:
    """Return the array `features` of a folder that :class:`StoredBlocks` has filled, `(N, ...)`."""
    return torch.from_numpy(open_arrays(folder / "features.safetensors")["features"])


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object of a folder of images; None if the file does not exist.

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
        raise RecordError(f"{path} holds no JSON object", expected="JSON of stored images", remedy=_DELETE)
    return content


def _difference(known: Mapping[str, Any], said: Mapping[str, Any], *, place: str = "") -> str:
    """Return the first setting in which two identities differ, with both values."""
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
