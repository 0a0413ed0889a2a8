"""The listing of one tar shard: its keys, its captions and the places of its images, kept for the next start.

A listing is kept as a Parquet file. Its name comes from the shard's path, and it holds the shard's size and time of
change. A changed shard is read again. Several shards are read at the same time.
Cost: 60 us a sample to read a shard, 2 us to read a kept listing; about 50 bytes a sample on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.data.broken import Broken
from memtrain.data.sample_table import SampleTable, in_columns
from memtrain.data.shard_files import IMAGE_EXTENSIONS, UNDECODED, ShardFile, captions_of, is_gap
from memtrain.data.source import Sample
from memtrain.data.tar_index import Place, index_tar, index_what_is_whole
from memtrain.errors import DataError
from memtrain.families.looking import default_workers
from memtrain.records import write_parquet

FORMAT = 2
"""The format of kept listings; shards with listings in another format are read again."""
DOTS = " (what follows the first dot of a name counts as its extension)"
WORTH = 1000
"""The smallest number of samples of a shard whose listing is kept."""
MANY = 8
"""The smallest number of shards that are read at the same time."""


@dataclass
class Listing:
    """The listing of a shard.

    Attributes:
        shard: the path of the shard.
        samples: the samples of the shard.
        offsets: the place of each image.
        sizes: the size of each image in bytes.
        gaps: the keys of samples that img2dataset lists without an image or a caption.
        undecoded: the number of images that are not decoded and lie beside others, by kind.
        broken: the samples that cannot be used.
        errors: the errors of these samples, which end a run.
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
    """Yield the listings of shards, in their order.

    Args:
        shards: the shards, which exist.
        skip: whether samples that cannot be used are left out; with it, a cut shard keeps the samples before the cut.
        kept_in: the folder of kept listings; None keeps none.

    Raises:
        DataError: if a shard cannot be read and nothing is left out.
    """
    missing = [shard for shard in shards if kept_in is None or not _is_kept(shard, kept_in)]
    if len(missing) >= MANY and (workers := min(default_workers(), len(missing))) > 1 and kept_in is not None:
        _read_together(missing, workers, skip=skip, kept_in=kept_in)
    for shard in shards:
        found = None if kept_in is None else _kept(shard, kept_in)
        if found is None:
            found = read_listing(shard, skip=skip)
            if kept_in is not None:
                _write(found, kept_in)
        yield found


def _read_together(shards: Sequence[Path], workers: int, *, skip: bool, kept_in: Path) -> None:
    """Keep the listings of shards, several at the same time. A shard that fails is read again later, with its error.

    The processes are commands of their own. Forked processes would hold locks of this process's threads, and spawned
    processes would run the user's program once more.
    """
    started = []
    for number in range(workers):
        asked = {"shards": [str(shard.absolute()) for shard in shards[number::workers]], "skip": skip}
        words = json.dumps({**asked, "kept_in": str(kept_in.absolute())})
        command = [sys.executable, "-c", "from memtrain.data.shard_listing import keep_asked; keep_asked()"]
        place = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=place)  # noqa: S603 (our own code)
        started.append((process, words))
    for process, words in started:
        assert process.stdin is not None
        with suppress(OSError), process.stdin as asked_of:  # a process may have ended already
            asked_of.write(words)
    for process, _ in started:
        process.wait()


def keep_asked() -> None:
    """Keep the listings of the shards that the standard input names."""
    asked = json.loads(sys.stdin.read())
    for shard in asked["shards"]:
        _keep(Path(shard), skip=asked["skip"], kept_in=Path(asked["kept_in"]))


def read_listing(shard: Path, *, skip: bool = False) -> Listing:
    """Read the listing of a shard; arguments and errors as for :func:`listings`."""
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
            if is_gap(file, files):
                found.gaps.append(key)
                continue
            image = next((files[ext] for ext in IMAGE_EXTENSIONS if ext in files), None)
            undecoded.update(UNDECODED.intersection(files))
            try:
                if image is None:
                    raise DataError(
                        f"Sample {key!r:.100} in {shard} has no image, only {sorted(files)!s:.200}"
                        + (", which is not decoded" if UNDECODED.intersection(files) else "")
                        + (DOTS if any("." in extension for extension in files) else ""),
                        expected=f"a file with one of the extensions {', '.join(IMAGE_EXTENSIONS)}",
                        remedy="repair the shard; the part after the first dot of a name is its extension",
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
    except DataError:  # it is raised again when the shard is read in its turn
        return


def _place(shard: Path, kept_in: Path) -> Path:
    name = hashlib.sha256(str(shard.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return kept_in / f"{name}.parquet"


def _about(shard: Path) -> dict[str, Any]:
    stat = shard.stat()
    return {"format": FORMAT, "size": stat.st_size, "changed": stat.st_mtime_ns}


def _is_kept(shard: Path, kept_in: Path) -> bool:
    """Return whether a listing of the shard in its present state seems to exist, without reading its columns."""
    try:
        about = json.loads((pq.read_schema(_place(shard, kept_in)).metadata or {})[b"listing"])
        return {name: about[name] for name in ("format", "size", "changed")} == _about(shard)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False


def _kept(shard: Path, kept_in: Path) -> Listing | None:
    """Read a kept listing; None if it does not exist, is damaged, or belongs to another state of the shard."""
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
    """Keep a long listing, unless the shard has an error, which may be repaired."""
    if found.broken or len(found.samples) < WORTH or not isinstance(found.samples, SampleTable):
        return  # samples that are not in columns hold texts that the source refuses
    about = {**_about(found.shard), "gaps": found.gaps, "undecoded": found.undecoded}
    table = found.samples.table().append_column("offset", pa.array(found.offsets, pa.int64()))
    table = table.append_column("size", pa.array(found.sizes, pa.int64()))
    table = table.replace_schema_metadata({b"listing": json.dumps(about).encode()})
    write_parquet(table, _place(found.shard, kept_in))
