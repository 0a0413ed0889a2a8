"""The looks that a scan keeps of images. They are written as they come, so that a killed scan can go on.

Layout below `looks/<key>/`, in which the key is a hash of everything that the looks depend on:

- `identity.json`: the things that the looks depend on;
- `part-<first>-<last>.safetensors`: the looks of the samples in this range, renamed into place when complete;
- `looks.safetensors`: all looks, written when every sample was looked at; the parts are then removed;
- `about.json`: the reasons why images could not be read, by the sample's number, and the duration.

A scan is cut into the same ranges for any number of processes, and images are described in the same groups. So neither
this number nor the place at which a scan was stopped changes a bit of the result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from memtrain.errors import DataError, MissingPartsError, RecordError
from memtrain.families.stored_arrays import Arrays, create_arrays, open_arrays
from memtrain.files.text import json_of, read_json_object
from memtrain.records import write_json, written_whole

ALL, ABOUT = "looks.safetensors", "about.json"
_PART = re.compile(r"part-(\d+)-(\d+)\.safetensors")
GROUP = 32
"""The number of images that are described together."""
FEWEST, MOST, WANTED = GROUP, 4096, 64
"""The smallest and largest number of samples in a part, and the wanted number of parts in a scan."""


@dataclass(frozen=True)
class Looks:
    """The looks of the n images that could be read.

    Attributes:
        rows: the number of each sample in its source, ascending, `(n,)` int64.
        hashes: the hashes of the decoded pixels, `(n, 32)` uint8.
        descriptors: the descriptors of unit length, `(n, D)` float32.
        thumbnails: the thumbnails, `(n, S, S, 3)` uint8.
        sizes: the width and height of each image, `(n, 2)` int32.
        broken: the reasons why the other images could not be read, by number.
        seconds: the duration, of all processes together.
    """

    rows: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    descriptors: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    broken: Mapping[int, str]
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, looks: Sequence[Looks]) -> Looks:
        """Join the looks of several ranges. Empty looks may have descriptors of any length."""
        filled = [one for one in looks if len(one)] or looks[:1]
        arrays = {name: np.concatenate([getattr(one, name) for one in filled]) for name in COLUMNS}
        broken = {row: reason for one in looks for row, reason in one.broken.items()}
        return cls(**arrays, broken=broken, seconds=sum(one.seconds for one in looks))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays, which is everything but the broken images and the duration."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = ("rows", "hashes", "descriptors", "thumbnails", "sizes")


@dataclass(frozen=True)
class StoredLooks:
    """The looks of all images in a file. An array is mapped whenever it is needed.

    The read part of a mapped array counts as memory of the process as long as the mapping is held, so none is held.

    Attributes:
        path: the path of the file.
        broken: the reasons why images could not be read, by number.
        seconds: the duration, of all processes together.
    """

    path: Path
    broken: Mapping[int, str]
    seconds: float

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The number of each sample in its source; see :class:`Looks`."""
        return open_arrays(self.path)["rows"]

    @property
    def hashes(self) -> NDArray[np.uint8]:
        """The hashes of the decoded pixels; see :class:`Looks`."""
        return open_arrays(self.path)["hashes"]

    @property
    def descriptors(self) -> NDArray[np.float32]:
        """The descriptors of unit length; see :class:`Looks`."""
        return open_arrays(self.path)["descriptors"]

    @property
    def thumbnails(self) -> NDArray[np.uint8]:
        """The thumbnails; see :class:`Looks`."""
        return open_arrays(self.path)["thumbnails"]

    @property
    def sizes(self) -> NDArray[np.int32]:
        """The width and height of each image; see :class:`Looks`."""
        return open_arrays(self.path)["sizes"]


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the name of the looks that depend on these things."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class LookParts:
    """The looks of one scan.

    Args:
        folder: the folder `looks/` of the scan.
        identity: everything that the looks depend on, in JSON values.
        samples: the number of samples in the source.

    Attributes:
        key: the name of the folder with this scan's looks.
        ranges: the first and last sample number of each part.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, samples: int) -> None:
        self.key = key_of(identity)
        self.folder, self.samples = folder / self.key, samples
        size = min(MOST, max(FEWEST, -(-samples // WANTED // GROUP) * GROUP))
        self.ranges = [(first, min(first + size, samples) - 1) for first in range(0, samples, size)]
        write_json(identity, self.folder / "identity.json")

    def missing(self, shard: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
        """Return the ranges of a shard that are still to be looked at.

        Args:
            shard: the index and the count of the shard; a part belongs to the shard `number % count`.
        """
        if (self.folder / ALL).is_file():
            return []
        there = {path.name for path in self.folder.glob("part-*.safetensors")}
        if (self.folder / ALL).is_file():  # another process has put them together meanwhile
            return []
        index, count = shard
        return [found for found in self.ranges[index::count] if self._name(found) not in there]

    def has(self, found: tuple[int, int]) -> bool:
        """Return whether the looks of this range exist, alone or with all others."""
        return (self.folder / self._name(found)).is_file() or (self.folder / ALL).is_file()

    @property
    def _again(self) -> str:
        return f"delete {self.folder}; the images are then looked at again"

    @staticmethod
    def _name(found: tuple[int, int]) -> str:
        return f"part-{found[0]:010d}-{found[1]:010d}.safetensors"

    def append(self, found: tuple[int, int], looks: Looks) -> None:
        """Write the looks of one range."""
        about = {"broken": {str(row): reason for row, reason in looks.broken.items()}, "seconds": looks.seconds}
        arrays = {name: np.ascontiguousarray(array) for name, array in looks.arrays().items()}
        with written_whole(self.folder / self._name(found)) as unfinished:
            unfinished.write_bytes(save(arrays, metadata={"about": json.dumps(about)}))

    def merged(self) -> StoredLooks:
        """Merge all looks in the order of samples into one file.

        Raises:
            MissingPartsError: with the names of missing parts.
        """
        if missing := self.missing():
            names = ", ".join(self._name(found) for found in missing[:3])
            raise MissingPartsError(
                f"{len(missing)} of {len(self.ranges)} parts are missing in {self.folder}: {names}"
                f"{' and more' if len(missing) > 3 else ''}. The first one is that of the samples {missing[0][0]} to "
                f"{missing[0][1]}",
                expected="the parts of every process",
                remedy="run the unfinished processes again with the same arguments; finished parts are not made again",
            )
        whole = self.folder / ALL
        if not whole.is_file():
            try:
                self._put_together(whole)
            except FileNotFoundError:  # another process has just put the parts together
                if not whole.is_file():
                    raise
        for found in self.ranges:
            (self.folder / self._name(found)).unlink(missing_ok=True)
        about = read_json_object(self.folder / ABOUT, what="a list of broken images", remedy=self._again)
        try:
            broken = {int(row): str(reason) for row, reason in about["broken"].items()}
            return StoredLooks(whole, broken, float(about["seconds"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(
                f"{self.folder / ABOUT} cannot be read: {error!r}",
                expected="a list of broken images",
                remedy=self._again,
            ) from error

    def _put_together(self, whole: Path) -> None:
        files = [self.folder / self._name(found) for found in self.ranges]
        parts = [open_arrays(file) for file in files]
        filled = [part for part in parts if len(part["rows"])] or parts
        count = sum(len(part["rows"]) for part in parts)
        shapes = {name: (str(filled[0][name].dtype), (count, *filled[0][name].shape[1:])) for name in COLUMNS}
        about = [_about(file) for file in files]
        broken = {row: reason for one in about for row, reason in one["broken"].items()}
        write_json({"broken": broken, "seconds": sum(one["seconds"] for one in about)}, self.folder / ABOUT)
        with written_whole(whole) as unfinished:
            _copy(create_arrays(unfinished, shapes), parts)


def _copy(to: Arrays, parts: Sequence[Arrays]) -> None:
    at = 0
    for part in parts:
        count = len(part["rows"])
        if count:
            for name, array in to.items():
                array[at : at + count] = part[name]
        at += count
    for array in to.values():
        if isinstance(array, np.memmap):
            array.flush()


def _about(file: Path) -> dict[str, Any]:
    """Read the facts that a part holds in addition to its arrays."""
    with file.open("rb") as opened:
        try:
            header = json_of(opened.read(int.from_bytes(opened.read(8), "little")), "its header")
            found: dict[str, Any] = json_of(header["__metadata__"]["about"], "what it says of itself")
            return {"broken": dict(found["broken"]), "seconds": float(found["seconds"])}
        except (DataError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise RecordError(
                f"{file} cannot be read: {error}",
                expected="looks of images",
                remedy="delete it; the next scan looks at these images again",
            ) from error
