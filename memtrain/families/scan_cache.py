"""The families of a data set, scanned once and read again as long as nothing changes: for training.

`<folder>/<fingerprint>/` holds `families.parquet` and `scan.json`. The fingerprint is a hash of keys, captions,
settings and of the content of the files that hold the images, so renamed, edited or exchanged files are scanned anew.
At a second start, files whose size and time of change are known are not read. What was looked at stays in
`<folder>/looks/`, so a scan that was stopped goes on, and edited captions need no new look. Whatever lies in the folder
may be deleted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from memtrain.families.content import content_of
from memtrain.families.looking import ScannedSource
from memtrain.families.scan import ScanSettings, scan
from memtrain.families.scan_result import Scan, read_scan, write_scan


def fingerprint(source: ScannedSource, settings: ScanSettings, folder: Path, *, progress: bool = False) -> str | None:
    """Name of the scan of this data with these settings; None if the source does not say where its images are.

    Args:
        source: of the samples.
        settings: of the scan.
        folder: of the cache, which knows the files again.
        progress: show a bar where files are read.
    """
    content = content_of(source, folder / "files.parquet", workers=settings.threads, progress=progress)
    if content is None:
        return None
    found = hashlib.sha256(json.dumps([content, settings.identity(len(source.samples))], sort_keys=True).encode())
    for sample in source.samples:
        found.update(json.dumps([sample.key, sample.caption]).encode())
    return found.hexdigest()[:16]


def cached_scan(
    source: ScannedSource, settings: ScanSettings | None, folder: Path, *, quiet: bool = False, progress: bool = True
) -> Scan:
    """The families of a source, from the cache or from a scan, and a line on the screen that says what it cost.

    One process is called first, such as rank 0; where the cache is filled, others only read.

    Args:
        source: has the samples and their images.
        settings: how families are found; default :class:`ScanSettings`.
        folder: of the cache.
        quiet: print nothing.
        progress: show a bar.

    Raises:
        DataError: if no image can be read.
    """
    settings = settings or ScanSettings()
    progress = progress and not quiet
    name = fingerprint(source, settings, folder, progress=progress)
    found = None if name is None else read_scan(folder / name)
    if found is None:
        found = scan(source, settings=settings, folder=None if name is None else folder, progress=progress)
        assert found is not None  # there is one shard
        if name is not None:
            write_scan(found, folder / name, fingerprint=name)
    if not quiet:
        print(found.line())
    return found
