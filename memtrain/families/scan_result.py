"""The result of a scan, and its files.

- `families.parquet`: a row for each sample whose image could be read (see :mod:`memtrain.families.table`);
- `scan.json`: the number of pictures, the threshold, the cost, and the images that could not be read;
- `exclude.csv`: all but one sample of each picture, in a column `key`. The kept sample is the first one with the most
  pixels. Further columns name the kept sample and the reason.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import memtrain
from memtrain.errors import DataError, RecordError
from memtrain.families.table import Families
from memtrain.files.parquet_table import read_parquet
from memtrain.files.sheet_cells import write_cells
from memtrain.files.text import read_json
from memtrain.records import write_json, written_whole

TABLE, SUMMARY, EXCLUDE = "families.parquet", "scan.json", "exclude.csv"
"""The files of a scan."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of a scan.

    Attributes:
        families: the families of the samples.
        keys: the keys of the n samples whose images could be read, in the order of the source.
        sizes: the width and height of each image, `(n, 2)`; None if only the families were kept.
        broken: the reasons why images could not be read, by key; these samples are in no family.
        descriptor: the name and version of the descriptor.
        threshold: the similarity from which two images count as one picture.
        false_merge_rate: the stated share of pictures that are joined to another one by mistake.
        rests_on: the basis of the threshold in words.
        seconds: the duration of looking at the images, of all processes together, and of finding families.
        cached: whether the result comes from an earlier scan.
    """

    families: Families
    keys: Sequence[str]
    sizes: NDArray[np.int32] | None
    broken: Mapping[str, str]
    descriptor: str
    threshold: float
    false_merge_rate: float
    rests_on: str
    seconds: tuple[float, float]
    cached: bool = False

    @property
    def images(self) -> int:
        """The number of images that were looked at."""
        return len(self.keys)

    @property
    def images_per_second(self) -> float:
        """The number of images per second of the whole scan."""
        return self.images / max(sum(self.seconds), 1e-9)

    @cached_property
    def pictures(self) -> Mapping[str, Sequence[str]]:
        """The samples of each picture with several files, by the picture's name; the largest picture comes first."""
        return _several(self.keys, self.families.pictures)

    @cached_property
    def captions(self) -> Mapping[str, Sequence[str]]:
        """The samples of each caption of several pictures, by the caption's name; the largest caption comes first."""
        found = _several(self.keys, self.families.captions)
        several = {name: keys for name, keys in found.items() if len({*map(self.families.picture, keys)}) > 1}
        return several

    @cached_property
    def kept(self) -> Mapping[str, str]:
        """The kept file of each picture with several files, by its name: the first one with the most pixels."""
        assert self.sizes is not None  # an earlier scan does not keep the sizes
        pixels = dict(zip(self.keys, self.sizes.prod(axis=1, dtype=np.int64).tolist(), strict=True))
        return {name: max(members, key=pixels.__getitem__) for name, members in self.pictures.items()}

    def counts(self) -> dict[str, int]:
        """Return the numbers of images, pictures, captions and files."""
        together = sum(map(len, self.pictures.values()))
        return {
            "images": self.images,
            "unreadable": len(self.broken),
            "pictures": self.images - together + len(self.pictures),
            "pictures_with_several_files": len(self.pictures),
            "files_of_these": together,
            "largest_picture": max(map(len, self.pictures.values()), default=1 if self.images else 0),
            "shared_captions": len(self.captions),
            "files_under_these": sum(map(len, self.captions.values())),
            "largest_caption": max(map(len, self.captions.values()), default=1 if self.images else 0),
        }

    def line(self) -> str:
        """Return the cost and the result of the scan in one plain line."""
        counts = self.counts()
        seconds = sum(self.seconds)
        start = f"Scanned {counts['images']:,} images in {seconds:.1f} s ({self.images_per_second:,.0f} a second)"
        if self.cached:
            start = f"Families of {counts['images']:,} images, known from an earlier scan"
        found = [f"{counts['pictures']:,} pictures", "none has several files"]
        if many := counts["pictures_with_several_files"]:
            found[1] = f"{_have(many)} several files, the largest {counts['largest_picture']:,}"
        if many := counts["shared_captions"]:
            shared = "1 caption belongs" if many == 1 else f"{many:,} captions belong"
            found.append(f"{shared} to several pictures, the largest to {counts['largest_caption']:,} files")
        if many := counts["unreadable"]:
            found.append(f"{many:,} more could not be read")
        return f"{start}: {'; '.join(found)}."


def _have(count: int) -> str:
    return f"{count:,} {'has' if count == 1 else 'have'}"


def _several(keys: Sequence[str], names: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in keys:
        if key in names:
            found.setdefault(names[key], []).append(key)
    several = [(name, members) for name, members in found.items() if len(members) > 1]
    return dict(sorted(several, key=lambda item: -len(item[1])))


def write_scan(scan: Scan, folder: Path, **more: Any) -> None:
    """Write `families.parquet`, and then `scan.json`. The latter exists only for a complete scan.

    Args:
        scan: the result of the scan.
        folder: the folder, which is made if it does not exist.
        more: further entries of `scan.json`, such as the path of the data.
    """
    scan.families.write(folder / TABLE, scan.keys)
    write_json(
        {
            **more,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "memtrain": memtrain.__version__,
            "descriptor": scan.descriptor,
            "threshold": scan.threshold,
            "false_merge_rate": scan.false_merge_rate,
            "threshold_rests_on": scan.rests_on,
            **scan.counts(),
            "seconds": {"looking": scan.seconds[0], "finding": scan.seconds[1]},
            "images_per_second": scan.images_per_second,
            "broken": scan.broken,
        },
        folder / SUMMARY,
    )


def read_scan(folder: Path) -> Scan | None:
    """Read the files of :func:`write_scan`, without the sizes of images; None if there are none.

    Raises:
        RecordError: if they cannot be read.
    """
    if not (folder / SUMMARY).is_file():
        return None
    try:
        summary = read_json(folder / SUMMARY)
        return Scan(
            families=Families.read(folder / TABLE),
            keys=read_parquet(folder / TABLE, needed=("key",), columns=("key",))["key"].to_pylist(),
            sizes=None,
            broken=summary["broken"],
            descriptor=summary["descriptor"],
            threshold=summary["threshold"],
            false_merge_rate=summary["false_merge_rate"],
            rests_on=summary["threshold_rests_on"],
            seconds=(summary["seconds"]["looking"], summary["seconds"]["finding"]),
            cached=True,
        )
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{folder / SUMMARY} cannot be read: {error}",
            expected="the files of a scan",
            remedy=f"delete {folder}; the next start scans again",
        ) from error


def write_exclude(scan: Scan, path: Path) -> int:
    """Write the samples to leave out if each picture is to be kept once.

    Args:
        scan: the result of the scan, with the sizes of images.
        path: the path of the CSV file.

    Returns:
        The number of samples that are left out.
    """
    similarity, reason = scan.families.similarity, scan.families.reason
    rows = [
        (key, scan.kept[name], similarity.get(key), reason.get(key))
        for name, members in scan.pictures.items()
        for key in members
        if key != scan.kept[name]
    ]
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        write_cells(file, ("key", "kept", "similarity", "reason"), rows)
    return len(rows)
