"""What one tar shard lists: keys, captions and where the images lie; read once, and kept for the next start.

A listing is kept as a Parquet file under a name of the shard's path, with the size and time of change that the shard
had. A shard that changed is read again. Of several shards that are to be read, some are at the same time.
Cost: 60 us a sample when a shard is read, 2 us from a kept listing; some 50 bytes a sample on the disk.
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
"""Of kept listings; others are read anew."""
DOTS = " (what follows the first dot of a name counts as its extension)"
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
        _read_together(missing, workers, skip=skip, kept_in=kept_in)
    for shard in shards:
        found = None if kept_in is None else _kept(shard, kept_in)
        if found is None:
            found = read_listing(shard, skip=skip)
            if kept_in is not None:
                _write(found, kept_in)
        yield found


def _read_together(shards: Sequence[Path], workers: int, *, skip: bool, kept_in: Path) -> None:
    """Keep the listings of shards, some at the same time; what fails is read again in its turn, and told then.

    The processes are commands of their own: forked ones would hold locks of this one's threads, and spawned ones run
    the program once more that this is part of.
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
        with suppress(OSError), process.stdin as asked_of:  # one that has ended already is not asked
            asked_of.write(words)
    for process, _ in started:
        process.wait()


def keep_asked() -> None:
    """Keep the listings of the shards that the standard input names."""
    asked = json.loads(sys.stdin.read())
    for shard in asked["shards"]:
        _keep(Path(shard), skip=asked["skip"], kept_in=Path(asked["kept_in"]))


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
            if is_gap(file, files):
                found.gaps.append(key)
                continue
            image = next((files[ext] for ext in IMAGE_EXTENSIONS if ext in files), None)
            undecoded.update(UNDECODED.intersection(files))
            try:
                if image is None:
                    raise DataError(
                        f"Sample {key!r:.100} in {shard} has no image, only {sorted(files)!s:.200}"
                        + (", which is not decoded here" if UNDECODED.intersection(files) else "")
                        + (DOTS if any("." in extension for extension in files) else ""),
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
