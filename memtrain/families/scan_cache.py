"""The families of a data set for training: scanned once, and read again as long as nothing changes.

`<folder>/<fingerprint>/` holds `families.parquet` and `scan.json`. The fingerprint is a hash of keys, captions,
settings and the content of the images' files, so a change of these leads to a new scan. At a second start, files with a
known size and time of change are not read. The looks stay in `<folder>/looks/`, so a stopped scan goes on, and edited
captions need no new look. You may delete anything in the folder.
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
    """Return the name of the scan of these data with these settings; None if the source does not name its files.

    Args:
        source: the source of the samples.
        settings: the settings of the scan.
        folder: the folder of the cache, which recognizes known files.
        progress: whether to show a progress bar while files are read.
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
    """Return the families of a source from the cache or from a scan, and print one line with the cost.

    One process calls this first, such as rank 0. When the cache is filled, others only read.

    Args:
        source: the source of the samples and their images.
        settings: the settings of the search; by default :class:`ScanSettings`.
        folder: the folder of the cache.
        quiet: whether to print nothing.
        progress: whether to show a progress bar.

    Raises:
        DataError: if no image can be read.
    """
    settings = settings or ScanSettings()
    progress = progress and not quiet
    name = fingerprint(source, settings, folder, progress=progress)
    found = None if name is None else read_scan(folder / name)
    if found is None:
        found = scan(source, settings=settings, folder=None if name is None else folder, progress=progress)
        assert found is not None  # the scan has one shard
        if name is not None:
            write_scan(found, folder / name, fingerprint=name)
    if not quiet:
        print(found.line())
    return found
