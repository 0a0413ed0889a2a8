"""A scan: which samples of a data set are one picture, and which share a caption, found before training.

Every image is decoded once, and a hash of its pixels, a descriptor and a thumbnail are kept (`looking.py`); from these
the families are found (`find.py`). A scan with a folder keeps the looks there and goes on where it was stopped; several
processes may share the work.

Cost of an image of 64 pixels on one core: 0.2 ms to decode, 0.9 ms to describe, 1.2 ms to find its family; 7 kB on
disk, and less than 4 kB of memory while families are found (`benchmarks/scale_scan.py`). Cannot: see that two pictures
are one where neither pixels nor descriptor say so.
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
"""Images up to which the search compares all with all; and up to which it does where FAISS is not installed."""
SOON = 5_000
"""Images up to which families are found too soon to say so."""
_FORMAT = 1
"""Of looks; another one is not read."""


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """How families are found.

    Args:
        descriptor: proposes pictures that may be one; default the built-in one, which needs no weights.
        false_merge_rate: wanted share of pictures that are joined to another one by mistake.
        caption_level: Jaccard similarity of words from which captions are nearly equal; null for equal ones only.
        search: `exact` compares all descriptors with all, `faiss` (extra `scan`) follows a graph of near ones. `auto`
            takes FAISS for more than 20,000 images if it is installed, and needs it for more than 100,000.
        workers: threads that decode images; default one for each processor, eight at most.
    """

    descriptor: Descriptor | None = None
    false_merge_rate: float = 0.01
    caption_level: float | None = LEVEL
    search: Literal["auto", "exact", "faiss"] = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigurationError(f"workers={self.workers}", expected="at least 1", remedy="change it")
        reference_threshold(self.false_merge_rate)  # refuses what is no rate
        caption_families((), level=self.caption_level)  # and what is no level

    @cached_property
    def describes(self) -> Descriptor:
        """The descriptor, the default one where none is named."""
        return self.descriptor or BuiltIn()

    @property
    def described_by(self) -> str:
        """Name and version of the descriptor."""
        return f"{self.describes.name} {self.describes.version}"

    @property
    def threads(self) -> int:
        """That decode images."""
        return self.workers or default_workers()

    def searches(self, images: int) -> Search:
        """The search among so many images.

        Raises:
            ConfigurationError: if it needs FAISS, which is not installed.
        """
        exact = EXACT_UP_TO if faiss_is_there() else AT_MOST_EXACT
        if self.search == "exact" or (self.search == "auto" and images <= exact):
            return ExactSearch()
        faiss_module()
        return FaissSearch()

    def identity(self, images: int) -> dict[str, Any]:
        """Everything but the data that families depend on, as JSON can hold it."""
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
        source: has the samples and their images.
        settings: how families are found.
        folder: where what was looked at is kept, so that a scan that was stopped goes on, and several processes share
            the work; default a temporary one.
        shard: index and count of the part that this process looks at; None to look at nothing and find the families in
            what other processes wrote.
        merges: whether the last process to finish its part finds the families; else that is left to `shard=None`.
        progress: show a bar.
        engine: looks at the images and compares pictures; default in this process. Another one needs a folder that all
            of its machines share.

    Returns:
        None if other processes have not looked at their parts yet. Whoever is last finds the families.

    Raises:
        ConfigurationError: if a folder is given, and the source does not say in which files its images are.
        DataError: if no image can be read, or keys are none.
        RecordError: if there is nothing to look at and parts are missing.
    """
    settings = settings or ScanSettings()
    # What is refused at the end is refused now, not after hours.
    settings.searches(len(source.samples))
    _check_keys(source)
    engine = engine or LocalEngine()
    if folder is None:
        if shard != (0, 1) or not isinstance(engine, LocalEngine):
            asked = f"shard={shard}" if isinstance(engine, LocalEngine) else "An engine of other processes"
            raise ConfigurationError(
                f"{asked} without a folder", expected="a folder that all processes share", remedy="name one"
            )
        with tempfile.TemporaryDirectory(prefix="memtrain-scan-") as temporary:
            return _scan(source, settings, Path(temporary), content="", shard=shard, progress=progress, engine=engine)
    content = files_of(source)
    if content is None:
        raise ConfigurationError(
            f"{type(source).__name__} does not say in which files its images are, so what {folder} holds of an earlier "
            "scan may be about other images",
            expected="a path for every sample from its method `stored_in(index)`",
            remedy="add the method, or scan without a folder",
        )
    return _scan(
        source, settings, folder, content=content, shard=shard, merges=merges, progress=progress, engine=engine
    )


def _identity(content: str, settings: ScanSettings) -> dict[str, Any]:
    return {"format": _FORMAT, "content": content, "descriptor": settings.described_by}


def looks_of(content: str, folder: Path, settings: ScanSettings, samples: int) -> Path | None:
    """The file with the looks of a scan that ended; None if there is none.

    Args:
        content: of the source, by :func:`memtrain.families.content.files_of`.
        folder: of the scan.
        settings: of the scan.
        samples: of the source.
    """
    if not (folder / "looks").is_dir():
        return None
    file = folder / "looks" / key_of(_identity(content, settings)) / ALL
    return file if samples and file.is_file() else None


def _check_keys(source: ScannedSource) -> None:
    """Refuse no samples, keys that come twice, and keys that no table can hold."""
    keys = [sample.key for sample in source.samples]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    # Half of a surrogate pair, as in the name of a file that is not UTF-8.
    strange = [key for key in keys if any("\ud800" <= letter <= "\udfff" for letter in key)]
    if not keys or twice or strange:
        found = f"{len(twice)} key(s) come twice, {len(strange)} are no Unicode, first {[*twice, *strange][:3]}"
        raise DataError(
            found if keys else "The source has no samples",
            expected="samples with a name of their own each",
            remedy="rename them",
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
    """Look at what is missing of a shard, and write it part by part."""
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
        # One stream over all parts, so that images are decoded while those before them are described.
        for group in look_at(source, settings.describes, groups(), pool=pool):
            looks.append(group)
            bar.update(len(group) + len(group.broken))
            if sum(len(one) + len(one.broken) for one in looks) == wanted[0][1] - wanted[0][0] + 1:
                now = time.perf_counter()
                parts.append(wanted.popleft(), replace(Looks.joined(looks), seconds=now - began))
                began, looks = now, []
