"""The families of a data source: read from a table, and extended by what an experiment makes of its samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memtrain.data.planted import MadeSample
from memtrain.data.source import SampleSource
from memtrain.errors import DataError
from memtrain.families.scan import ScanSettings, scan
from memtrain.families.scan_cache import cached_scan
from memtrain.families.table import Families, listed_keys
from memtrain.records import REPEATED, UNIQUE, VARIED_CAPTIONS

AUTO, OFF = "auto", "off"
"""The settings that look for families, and that count files instead of pictures."""


@dataclass(frozen=True, kw_only=True)
class DataScan(ScanSettings):
    """How a data module finds families.

    Args:
        folder: where what was found is kept, to be read again as long as the data do not change; default `families` in
            the run folder.
    """

    folder: str | None = None


def find_families(
    setting: str, source: SampleSource, settings: DataScan, *, folder: Path | None
) -> tuple[Families | None, Collection[str] | None]:
    """The families of a source, None where they are not to be counted; and the keys of images that cannot be read.

    The latter are None where not all images were looked at.

    Args:
        setting: `auto`, `off` or the path of a table.
        source: of the samples.
        settings: of the scan.
        folder: of its cache; None for none.
    """
    if setting == OFF:
        return None, None
    if setting != AUTO:
        return read_families(setting, [sample.key for sample in source.samples]), None
    if folder is not None:
        kept = cached_scan(source, settings, folder, quiet=True)
        return kept.families, kept.broken
    found = scan(source, settings=settings, progress=False)
    assert found is not None  # of one shard
    return found.families, found.broken


def read_families(path: str, keys: Collection[str]) -> Families:
    """The families of a table that a scan wrote.

    Args:
        path: of families.parquet.
        keys: of the samples of the data.

    Raises:
        RecordError: if the file is no such table.
        DataError: if it belongs to other data.
    """
    families, listed = Families.read(path), listed_keys(path)
    missing = [key for key in keys if key not in listed]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(keys)} sample(s), first {missing[:3]}",
            expected="the families of every sample of the data",
            remedy="run `memtrain scan` on this data, or set data.init_args.families to auto",
        )
    return families


def with_made(families: Families, made: Sequence[MadeSample], keys: Sequence[str]) -> Families:
    """The same with the samples that were made of others.

    Args:
        families: of the source.
        made: a caption's variant shows the picture of its original, a picture's variant has the caption of its
            original; canaries are families of their own.
        keys: of the source's samples.
    """
    pictures, captions = dict(families.pictures), dict(families.captions)
    for one in made:
        if one.original is None:
            continue
        original = keys[one.original]
        if one.group == VARIED_CAPTIONS:
            name = families.picture(original)
            pictures |= {original: name, one.sample.key: name}
        else:
            name = families.caption(original)
            captions |= {original: name, one.sample.key: name}
    return Families(pictures, captions, families.similarity, families.reason)


def repeated_pictures(groups: Mapping[str, str], families: Families) -> dict[str, str]:
    """The group of those unique samples of which the training data hold further files.

    Args:
        groups: of the training samples, by key.
        families: of the data.
    """
    count: dict[str, int] = {}
    for key in groups:
        count[families.picture(key)] = count.get(families.picture(key), 0) + 1
    return {key: REPEATED for key, group in groups.items() if group == UNIQUE and count[families.picture(key)] > 1}
