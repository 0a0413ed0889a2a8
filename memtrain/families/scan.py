"""A scan before training, which finds the samples that show one picture and the samples that share a caption.

Every image is decoded once. A hash of its pixels, a descriptor and a thumbnail are kept (`looking.py`), and the
families are found from these (`find.py`). A scan with a folder keeps the looks there and goes on where it was stopped.
Several processes may share the work.

Cost of an image of 64 pixels on one core: 0.2 ms to decode, 0.9 ms to describe, 1.2 ms to find its family. It takes 7
kB on disk, and less than 4 kB of memory while families are found (`benchmarks/scale_scan.py`). Cannot: see that two
pictures are one if neither pixels nor descriptor show it.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memtrain.engines.base import Engine, LocalEngine
from memtrain.errors import ConfigurationError, DataError
from memtrain.families.captions import LEVEL, caption_families
from memtrain.families.content import files_of
from memtrain.families.descriptors.base import Descriptor
from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.faiss_search import FaissSearch, faiss_is_there, faiss_module
from memtrain.families.find import find_families
from memtrain.families.look_parts import ALL, LookParts, Looks, key_of
from memtrain.families.looking import ScannedSource, default_workers, groups_of, look_at, look_by
from memtrain.families.near_threshold import reference_threshold
from memtrain.families.scan_result import Scan
from memtrain.families.search import ExactSearch, Search
from memtrain.files.progress import progress_bar, say_aside

EXACT_UP_TO, AT_MOST_EXACT = 20_000, 100_000
"""The number of images up to which the search compares all with all, with and without FAISS installed."""
SOON = 5_000
"""The number of images up to which families are found too soon for a message."""
_FORMAT = 1
"""The format of looks; looks in another format are not read."""


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """The settings of the search for families.

    Args:
        descriptor: the descriptor that proposes pictures; by default the built-in one, which needs no weights.
        false_merge_rate: the wanted share of pictures that are joined to another one by mistake.
        caption_level: the Jaccard similarity of words from which captions are nearly equal; null counts only equal
            captions.
        search: the search: `exact` compares all descriptors with all, `faiss` (extra `scan`) follows a graph of near
            ones. `auto` uses FAISS for more than 20,000 images if it is installed, and needs it for more than 100,000.
        workers: the number of threads that decode images; by default one for each processor, but at most eight.
    """

    descriptor: Descriptor | None = None
    false_merge_rate: float = 0.01
    caption_level: float | None = LEVEL
    search: Literal["auto", "exact", "faiss"] = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigurationError(
                f"workers={self.workers}", expected="at least 1", remedy="raise the number of workers"
            )
        reference_threshold(self.false_merge_rate)  # refuses a rate out of range
        caption_families((), level=self.caption_level)  # refuses a level out of range

    @cached_property
    def describes(self) -> Descriptor:
        """The descriptor, by default the built-in one."""
        return self.descriptor or BuiltIn()

    @property
    def described_by(self) -> str:
        """The name and version of the descriptor."""
        return f"{self.describes.name} {self.describes.version}"

    @property
    def threads(self) -> int:
        """The number of threads that decode images."""
        return self.workers or default_workers()

    def searches(self, images: int) -> Search:
        """Return the search among a number of images.

        Raises:
            ConfigurationError: if it needs FAISS, which is not installed.
        """
        exact = EXACT_UP_TO if faiss_is_there() else AT_MOST_EXACT
        if self.search == "exact" or (self.search == "auto" and images <= exact):
            return ExactSearch()
        faiss_module()
        return FaissSearch()

    def identity(self, images: int) -> dict[str, Any]:
        """Return everything except the data that families depend on, in JSON values."""
        return {
            "format": _FORMAT,
            "descriptor": self.described_by,
            "false_merge_rate": self.false_merge_rate,
            "caption_level": self.caption_level,
            "search": repr(self.searches(images)),
        }


def scan(
    source: ScannedSource,
    *,
    settings: ScanSettings | None = None,
    folder: Path | None = None,
    shard: tuple[int, int] | None = (0, 1),
    merges: bool = True,
    progress: bool = True,
    engine: Engine | None = None,
) -> Scan | None:
    """Look at every image of a source and find the families.

    Args:
        source: the source of the samples and their images.
        settings: the settings of the search.
        folder: the folder that keeps the looks, so that a stopped scan goes on, and several processes share the work;
            by default a temporary one.
        shard: the index and the count of the part that this process looks at; None looks at nothing, and finds the
            families in the files of other processes.
        merges: whether the last process to finish its part finds the families; otherwise a call with `shard=None` does.
        progress: whether to show a progress bar.
        engine: the engine that looks at images and compares pictures; by default this process. Another engine needs a
            folder that all of its machines share.

    Returns:
        The scan; None if other processes have not looked at their parts yet. The last process finds the families.

    Raises:
        ConfigurationError: if a folder is given, and the source does not name the files of its images.
        DataError: if no image can be read, or if keys cannot be used.
        RecordError: if this process looks at nothing and parts are missing.
    """
    settings = settings or ScanSettings()
    # Errors that would come at the end are raised now, not after hours.
    settings.searches(len(source.samples))
    _check_keys(source)
    engine = engine or LocalEngine()
    if folder is None:
        if shard != (0, 1) or not isinstance(engine, LocalEngine):
            asked = f"shard={shard}" if isinstance(engine, LocalEngine) else "An engine of other processes"
            raise ConfigurationError(
                f"{asked} without a folder", expected="a folder that all processes share", remedy="pass folder="
            )
        with tempfile.TemporaryDirectory(prefix="memtrain-scan-") as temporary:
            return _scan(source, settings, Path(temporary), content="", shard=shard, progress=progress, engine=engine)
    content = files_of(source)
    if content is None:
        raise ConfigurationError(
            f"{type(source).__name__} does not name the files of its images, so looks of an earlier scan in {folder} "
            "may belong to other images",
            expected="a path for every sample from its method `stored_in(index)`",
            remedy="add the method, or scan without a folder",
        )
    return _scan(
        source, settings, folder, content=content, shard=shard, merges=merges, progress=progress, engine=engine
    )


def _identity(content: str, settings: ScanSettings) -> dict[str, Any]:
    return {"format": _FORMAT, "content": content, "descriptor": settings.described_by}


def looks_of(content: str, folder: Path, settings: ScanSettings, samples: int) -> Path | None:
    """Return the file with the looks of a finished scan; None if there is none.

    Args:
        content: the hash of the source's files, from :func:`memtrain.families.content.files_of`.
        folder: the folder of the scan.
        settings: the settings of the scan.
        samples: the number of samples in the source.
    """
    if not (folder / "looks").is_dir():
        return None
    file = folder / "looks" / key_of(_identity(content, settings)) / ALL
    return file if samples and file.is_file() else None


def _check_keys(source: ScannedSource) -> None:
    """Refuse an empty source, duplicate keys, and keys that a table cannot hold."""
    keys = [sample.key for sample in source.samples]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    # Half of a surrogate pair, as in the name of a file that is not UTF-8.
    strange = [key for key in keys if any("\ud800" <= letter <= "\udfff" for letter in key)]
    if not keys or twice or strange:
        found = f"{len(twice)} key(s) occur twice, {len(strange)} are not Unicode, first {[*twice, *strange][:3]}"
        raise DataError(
            found if keys else "The source has no samples",
            expected="samples with a name of their own each",
            remedy="rename the samples",
        )


def _scan(
    source: ScannedSource,
    settings: ScanSettings,
    folder: Path,
    *,
    content: str,
    shard: tuple[int, int] | None,
    progress: bool,
    engine: Engine,
    merges: bool = True,
) -> Scan | None:
    identity = _identity(content, settings)
    parts = LookParts(folder / "looks", identity, samples=len(source.samples))
    if shard is not None:
        if isinstance(engine, LocalEngine):
            _look(source, settings, parts, shard=shard, progress=progress)
        else:
            look_by(engine, source, describes=settings.describes, parts=parts, shard=shard, progress=progress)
        if not merges or parts.missing():
            return None
    looks = parts.merged()
    samples = source.samples
    broken = {samples[row].key: reason for row, reason in looks.broken.items()}
    if not len(looks):
        raise DataError(
            f"None of {len(broken)} images can be read: {next(iter(broken.values()), 'there are none')}",
            expected="image files that Pillow decodes (PNG, JPEG, WebP, ...)",
            remedy="check the data",
        )
    if progress and len(looks) > SOON:
        say_aside(f"Finding families among {len(looks):,} images")
    began = time.perf_counter()
    found_in = looks.rows.tolist()
    keys = [samples[row].key for row in found_in]
    found = find_families(
        keys,
        [samples[row].caption for row in found_in],
        looks,
        false_merge_rate=settings.false_merge_rate,
        caption_level=settings.caption_level,
        search=settings.searches(len(looks)),
        engine=engine,
    )
    return Scan(
        families=found.families,
        keys=keys,
        sizes=np.array(looks.sizes),  # a copy: the file may be a temporary one
        broken=broken,
        descriptor=settings.described_by,
        threshold=found.threshold,
        false_merge_rate=found.false_merge_rate,
        rests_on=found.rests_on,
        seconds=(looks.seconds, time.perf_counter() - began),
    )


def _look(
    source: ScannedSource, settings: ScanSettings, parts: LookParts, *, shard: tuple[int, int], progress: bool
) -> None:
    """Look at the missing parts of a shard, and write each part."""
    missing = parts.missing(shard)
    of_shard = sum(last - first + 1 for first, last in parts.ranges[shard[0] :: shard[1]])
    left = sum(last - first + 1 for first, last in missing)
    bar = progress_bar(total=of_shard, initial=of_shard - left, desc="scanning", unit="image", disable=not progress)
    wanted: deque[tuple[int, int]] = deque()

    def groups() -> Iterator[range]:
        for part in missing:
            if parts.has(part):  # another process with the same task was faster
                bar.update(part[1] - part[0] + 1)
            else:
                wanted.append(part)
                yield from groups_of(*part)

    began, looks = time.perf_counter(), []
    with ThreadPoolExecutor(settings.threads) as pool, bar:
        # One stream over all parts, so that images are decoded while earlier ones are described.
        for group in look_at(source, settings.describes, groups(), pool=pool):
            looks.append(group)
            bar.update(len(group) + len(group.broken))
            if sum(len(one) + len(one.broken) for one in looks) == wanted[0][1] - wanted[0][0] + 1:
                now = time.perf_counter()
                parts.append(wanted.popleft(), replace(Looks.joined(looks), seconds=now - began))
                began, looks = now, []
