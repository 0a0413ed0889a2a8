"""What one tar shard lists: keys, captions and where the images lie; read once, and kept for the next start.

A listing is kept as a Parquet file under a name of the shard's path, with the size and time of change that the shard
had. A shard that changed is read again. Of several shards that are to be read, some are at the same time.
Cost: 60 us a sample when a shard is read, 2 us from a kept listing; some 50 bytes a sample on the disk.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.data.broken import Broken
from memtrain.data.sample_table import SampleTable, in_columns
from memtrain.data.source import Sample
from memtrain.data.tar_index import Place, index_tar, index_what_is_whole
from memtrain.errors import DataError
from memtrain.families.looking import default_workers
from memtrain.files.pictures import SUFFIXES, UNDECODED_SUFFIXES
from memtrain.records import write_parquet

PREFERRED = ("png", "jpg", "jpeg", "webp")
IMAGE_EXTENSIONS = (*PREFERRED, *sorted({suffix[1:] for suffix in SUFFIXES}.difference(PREFERRED)))
"""Extensions looked for, in this order of preference."""
UNDECODED = frozenset(suffix[1:] for suffix in UNDECODED_SUFFIXES)
"""Extensions of images that are not decoded here."""
MOST_BYTES = 2**24
"""Size of a caption or a .json in a shard at most."""
FORMAT = 2
"""Of kept listings; others are read anew."""
WORTH = 1000
"""Samples of a shard from which on its listing is kept."""
MANY = 8
"""Shards from which on several are read at the same time."""


@dataclass
class Listing:
    """What a shard lists.

    Attributes:
        shard: its path.
        samples: of the shard.
        offsets: where each image begins.
        sizes: bytes of each image.
        gaps: keys of samples that img2dataset lists without an image or caption.
        undecoded: images beside others that are not decoded here, by kind.
        broken: samples that cannot be used.
        errors: as which these end a run, likewise.
    """

    shard: Path
    samples: Sequence[Sample] = ()
    offsets: Sequence[int] = ()
    sizes: Sequence[int] = ()
    gaps: list[str] = field(default_factory=list)
    undecoded: dict[str, int] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)


def listings(shards: Sequence[Path], *, skip: bool = False, kept_in: Path | None = None) -> Iterator[Listing]:
    """The listings of shards, in their order.

    Args:
        shards: that exist.
        skip: whether what cannot be used is left out; with it, a shard that is cut keeps what comes before the cut.
        kept_in: folder of kept listings; None to keep none.

    Raises:
        DataError: if a shard cannot be read, and nothing is left out.
    """
    missing = [shard for shard in shards if kept_in is None or not _is_kept(shard, kept_in)]
    if len(missing) >= MANY and (workers := min(default_workers(), len(missing))) > 1 and kept_in is not None:
        # Not forked: the process has threads by now.
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        with pool:
            list(pool.map(partial(_keep, skip=skip, kept_in=kept_in), missing))
    for shard in shards:
        found = None if kept_in is None else _kept(shard, kept_in)
        if found is None:
            found = read_listing(shard, skip=skip)
            if kept_in is not None:
                _write(found, kept_in)
        yield found


def read_listing(shard: Path, *, skip: bool = False) -> Listing:
    """Read what a shard lists; arguments and errors as for :func:`listings`."""
    found, undecoded = Listing(shard), Counter[str]()
    samples: list[Sample] = []
    places: list[Place] = []
    if skip:
        index, cut = index_what_is_whole(shard)
        if cut is not None:
            found.broken.append(Broken("", str(shard), cut.problem))
            found.errors.append(cut)
    else:
        index = index_tar(shard)
    with ShardFile(shard) as file:
        for key, files in index.items():
            if _is_gap(file, files):
                found.gaps.append(key)
                continue
            image = next((files[ext] for ext in IMAGE_EXTENSIONS if ext in files), None)
            undecoded.update(UNDECODED.intersection(files))
            try:
                if image is None:
                    raise DataError(
                        f"Sample {key!r:.100} in {shard} has no image, only {sorted(files)!s:.200}"
                        + (", which is not decoded here" if UNDECODED.intersection(files) else ""),
                        expected=f"a file with one of the extensions {', '.join(IMAGE_EXTENSIONS)}",
                        remedy="repair the shard; what follows the first dot of a name counts as its extension",
                    )
                captions = captions_of(file, key, files)
            except DataError as error:
                found.broken.append(Broken(key, str(shard), error.problem))
                found.errors.append(error)
                continue
            samples.append(Sample.of(key, captions))
            places.append(image)
    found.samples = in_columns(samples)
    found.offsets, found.sizes = [place[0] for place in places], [place[1] for place in places]
    found.undecoded = dict(undecoded)
    return found


def _keep(shard: Path, *, skip: bool, kept_in: Path) -> None:
    try:
        _write(read_listing(shard, skip=skip), kept_in)
    except DataError:  # raised again where it is read in its turn
        return


def _place(shard: Path, kept_in: Path) -> Path:
    name = hashlib.sha256(str(shard.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return kept_in / f"{name}.parquet"


def _about(shard: Path) -> dict[str, Any]:
    stat = shard.stat()
    return {"format": FORMAT, "size": stat.st_size, "changed": stat.st_mtime_ns}


def _is_kept(shard: Path, kept_in: Path) -> bool:
    """Whether a listing of the shard as it is now seems to be there; its columns are not read."""
    try:
        about = json.loads((pq.read_schema(_place(shard, kept_in)).metadata or {})[b"listing"])
        return {name: about[name] for name in ("format", "size", "changed")} == _about(shard)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False


def _kept(shard: Path, kept_in: Path) -> Listing | None:
    """A kept listing; None if there is none, the shard changed, or it is spoilt."""
    place = _place(shard, kept_in)
    if not place.is_file():
        return None
    try:
        table = pq.read_table(place)
        about = json.loads((table.schema.metadata or {})[b"listing"])
        if {name: about[name] for name in ("format", "size", "changed")} != _about(shard):
            return None
        gaps, undecoded = list(map(str, about["gaps"])), {str(k): int(n) for k, n in about["undecoded"].items()}
        offsets, sizes = (table[name].to_numpy() for name in ("offset", "size"))
        return Listing(shard, SampleTable(table), offsets, sizes, gaps, undecoded)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _write(found: Listing, kept_in: Path) -> None:
    """Keep a listing that is long, unless something is wrong with the shard, which may be mended."""
    if found.broken or len(found.samples) < WORTH or not isinstance(found.samples, SampleTable):
        return  # what is no column holds texts that are refused by who reads them
    about = {**_about(found.shard), "gaps": found.gaps, "undecoded": found.undecoded}
    table = found.samples.table().append_column("offset", pa.array(found.offsets, pa.int64()))
    table = table.append_column("size", pa.array(found.sizes, pa.int64()))
    table = table.replace_schema_metadata({b"listing": json.dumps(about).encode()})
    write_parquet(table, _place(found.shard, kept_in))


def read_bytes(shard: Path, offset: int, size: int) -> bytes:
    """A stretch of a file."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


class ShardFile:
    """Stretches of one shard, which is opened when the first is read, and once; to be used as a context manager.

    Args:
        path: of the shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def read(self, place: Place) -> bytes:
        """The bytes at a place."""
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
    """A caption or JSON, which have some size.

    Raises:
        ValueError: if it is larger.
    """
    if place[1] > MOST_BYTES:
        raise ValueError(f"it has {place[1]} bytes, more than {MOST_BYTES}")
    return shard.read(place)


def row_of(shard: ShardFile, place: Place) -> dict[str, Any]:
    """What a .json says; nothing if it is no object.

    Raises:
        ValueError: if it is no JSON.
    """
    try:
        row = json.loads(_text(shard, place), parse_constant=lambda name: None)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return row if isinstance(row, dict) else {}


def _is_gap(shard: ShardFile, files: dict[str, Place]) -> bool:
    """Whether img2dataset lists a sample of which it got no image or no caption."""
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
    """All captions, the one that counts first."""
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
