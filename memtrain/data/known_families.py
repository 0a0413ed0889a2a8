"""The families of a data source, read from a table and extended by the samples that an experiment makes."""

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
"""The setting that looks for families, and the setting that counts files instead of pictures."""


@dataclass(frozen=True, kw_only=True)
class DataScan(ScanSettings):
    """The search of a data module for families.

    Args:
        folder: the folder that keeps the result, which is read again as long as the data do not change; by default
            `families` in the run folder.
    """

    folder: str | None = None


def find_families(
    setting: str, source: SampleSource, settings: DataScan, *, folder: Path | None
) -> tuple[Families | None, Collection[str] | None]:
    """Return the families of a source and the keys of images that cannot be read.

    The families are None with the setting `off`. The keys are None if some images were not looked at.

    Args:
        setting: `auto`, `off` or the path of a table.
        source: the source of the samples.
        settings: the settings of the scan.
        folder: the folder of the scan's cache; None for no cache.
    """
    if setting == OFF:
        return None, None
    if setting != AUTO:
        return read_families(setting, [sample.key for sample in source.samples]), None
    if folder is not None:
        kept = cached_scan(source, settings, folder, quiet=True)
        return kept.families, kept.broken
    found = scan(source, settings=settings, progress=False)
    assert found is not None  # the scan has one shard
    return found.families, found.broken


def read_families(path: str, keys: Collection[str]) -> Families:
    """Read the families from a table that a scan wrote.

    Args:
        path: the path of families.parquet.
        keys: the keys of all samples of the data.

    Raises:
        RecordError: if the file is not such a table.
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
    """Return the families with the samples that were made from others.

    Args:
        families: the families of the source.
        made: the made samples. A variant of a caption shows the picture of its original. A variant of a picture has
            the caption of its original. Canaries are families of their own.
        keys: the keys of the source's samples.
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
    """Return the group of those unique samples of which the training data hold further files.

    Args:
        groups: the group of each training sample, by key.
        families: the families of the data.
    """
    count: dict[str, int] = {}
    for key in groups:
        count[families.picture(key)] = count.get(families.picture(key), 0) + 1
    return {key: REPEATED for key, group in groups.items() if group == UNIQUE and count[families.picture(key)] > 1}
