"""The content of a data set's files, recognized without reading them, for the cache of a scan.

Names, sizes and times of change tell whether the files are the ones at which a scan was stopped. This costs one system
call for each file. The bytes of files tell whether they hold the data of an earlier scan, perhaps in another place. For
that, a file is read once, and its digest is kept with its size and time of change in `files.parquet`. At the next
start, a file of the same size and time is known without reading. A file that was changed less than two seconds before
it was read is read again, because a second change may not show in its time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.families.looking import ScannedSource
from memtrain.files.progress import progress_bar
from memtrain.records import write_parquet

UNCERTAIN = 2_000_000_000
"""The number of nanoseconds within which two changes of a file may have the same time."""
_SCHEMA = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("changed", pa.int64()), ("digest", pa.string())],
)


def file_digests(paths: Iterable[Path], known: Path, *, workers: int = 1, progress: bool = False) -> dict[Path, str]:
    """Return the SHA-256 of files. Known files are not read.

    Args:
        paths: the paths of the files; a path may occur several times.
        known: the table `files.parquet`, which is read if it exists, and written.
        workers: the number of threads that read.
        progress: whether to show a progress bar while files are read.
    """
    before = _read(known)
    files = list(dict.fromkeys(paths))
    found: dict[Path, tuple[int, int, str]] = {}
    unknown = []
    for file in files:
        stat = file.stat()
        size, changed, digest = before.get(_name(file), (-1, -1, ""))
        if (size, changed) == (stat.st_size, stat.st_mtime_ns):
            found[file] = size, changed, digest
        else:
            unknown.append(file)
    if unknown:
        began = time.time_ns()
        with ThreadPoolExecutor(workers) as pool:
            read = progress_bar(
                pool.map(_digest, unknown),
                "reading files",
                len(unknown),
                unit="file",
                leave=False,
                disable=not progress,
            )
            found |= zip(unknown, read, strict=True)
        certain = {_name(file): entry for file in files if began - (entry := found[file])[1] > UNCERTAIN}
        _write(before | certain, known)
    return {file: found[file][2] for file in files}


def content_of(source: ScannedSource, known: Path, *, workers: int = 1, progress: bool = False) -> str | None:
    """Hash the bytes of the files that hold a source's images, and the file of each key.

    Args:
        source: the source; its `stored_in(index)` names the file of an image, as in
            :class:`memtrain.data.source.SampleSource`.
        known: the table `files.parquet`; see :func:`file_digests`.
        workers: the number of threads that read.
        progress: whether to show a progress bar while files are read.

    Returns:
        The hash; None if the source does not know the file of every image.
    """
    files = _files(source)
    if files is None:
        return None
    return _hashed(source, files, file_digests(files, known, workers=workers, progress=progress))


def files_of(source: ScannedSource) -> str | None:
    """Hash the names, sizes and times of change of the files in the same way, without reading any file."""
    files = _files(source)
    if files is None:
        return None
    stats = {file: file.stat() for file in dict.fromkeys(files)}
    seen = {file: f"{file.name} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats.items()}
    return _hashed(source, files, seen)


def _files(source: ScannedSource) -> list[Path] | None:
    where = getattr(source, "stored_in", None)
    if where is None:
        return None
    files = [where(index) for index in range(len(source.samples))]
    return None if any(file is None for file in files) else files


def _hashed(source: ScannedSource, files: Sequence[Path], content: Mapping[Path, str]) -> str:
    found = hashlib.sha256()
    for sample, file in zip(source.samples, files, strict=True):
        found.update(json.dumps([sample.key, content[file]]).encode())
    return found.hexdigest()


def _name(file: Path) -> str:
    return str(file.resolve())


def _digest(file: Path) -> tuple[int, int, str]:
    """Return a file's size and time of change before it was read, and its digest."""
    stat = file.stat()
    with file.open("rb") as opened:
        return stat.st_size, stat.st_mtime_ns, hashlib.file_digest(opened, "sha256").hexdigest()


def _read(known: Path) -> dict[str, tuple[int, int, str]]:
    if not known.is_file():
        return {}
    try:
        table = pq.read_table(known, schema=_SCHEMA)
    except (OSError, ValueError, pa.ArrowException):  # the table only saves time, so a damaged one counts as none
        return {}
    columns = [table[name].to_pylist() for name in _SCHEMA.names]
    return {path: (size, changed, digest) for path, size, changed, digest in zip(*columns, strict=True)}


def _write(entries: dict[str, tuple[int, int, str]], known: Path) -> None:
    rows = [dict(zip(_SCHEMA.names, (name, *entry), strict=True)) for name, entry in entries.items()]
    write_parquet(pa.Table.from_pylist(rows, schema=_SCHEMA), known)
