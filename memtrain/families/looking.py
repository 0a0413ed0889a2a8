"""Looking at images: each is decoded once, and its hash, descriptor, thumbnail and size are kept.

Several threads decode images at once, because Pillow works without the interpreter's lock. Meanwhile the earlier images
are described. At most :data:`AHEAD` groups of images wait for their description. None of these images is much larger
than :data:`ENOUGH` pixels a side, so memory does not grow with the data.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtrain.engines.base import Engine
from memtrain.errors import ConfigurationError, DataError
from memtrain.families.descriptors.base import Descriptor
from memtrain.families.exact import pixel_hash
from memtrain.families.look_parts import GROUP, LookParts, Looks
from memtrain.families.looks import thumbnail
from memtrain.families.registration import SIDE
from memtrain.files.progress import progress_bar

AHEAD = 2
"""The number of groups that are decoded ahead of the described one."""
ENOUGH = 512
"""The pixels of a side (the geometric mean of both) that a description needs; twice as many are halved."""


class ScannedSample(Protocol):
    """The parts of a sample that a scan needs."""

    @property
    def key(self) -> str:
        """The permanent name of the sample."""

    @property
    def caption(self) -> str:
        """The text of the sample."""


class ScannedSource(Protocol):
    """The parts of a source that a scan needs; :class:`memtrain.data.source.SampleSource` has them."""

    @property
    def samples(self) -> Sequence[ScannedSample]:
        """All samples."""

    def load_image(self, index: int) -> Image.Image:
        """Return the decoded RGB image of `samples[index]`."""


@dataclass(frozen=True)
class _Decoded:
    """One image, small enough to be kept for a while."""

    pixels: Image.Image
    digest: bytes
    thumbnail: NDArray[np.uint8]
    size: tuple[int, int]


def default_workers() -> int:
    """Return the number of decoding threads: the processors of this process, but at most eight."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def decode(source: ScannedSource, index: int) -> _Decoded | str:
    """Decode one image of a source, or return why it cannot be read.

    Args:
        source: the source of the image.
        index: the index of the sample.
    """
    try:
        image = source.load_image(index)
    except DataError as error:
        return error.problem
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's errors, from a source that passes them on
        return str(error) or type(error).__name__
    factor = int((image.width * image.height) ** 0.5) // ENOUGH
    small = image.reduce(min(factor, *image.size)) if factor > 1 else image
    return _Decoded(small, pixel_hash(image), thumbnail(small), image.size)


def groups_of(first: int, last: int) -> list[range]:
    """Return the samples from `first` to `last` in the groups that are described together."""
    return [range(start, min(start + GROUP, last + 1)) for start in range(first, last + 1, GROUP)]


def look_at(
    source: ScannedSource, descriptor: Descriptor, groups: Iterable[Sequence[int]], *, pool: ThreadPoolExecutor
) -> Iterator[Looks]:
    """Yield the looks of samples, one group after the other.

    Args:
        source: the source of the images.
        descriptor: the descriptor.
        groups: the numbers of the samples, from :func:`groups_of`; read when they are needed.
        pool: the pool of decoding threads.

    Yields:
        The looks of each group.
    """
    left = iter(groups)
    waiting: deque[tuple[Sequence[int], list[Future[_Decoded | str]]]] = deque()
    while True:
        while len(waiting) <= AHEAD and (group := next(left, None)) is not None:
            waiting.append((group, [pool.submit(decode, source, row) for row in group]))
        if not waiting:
            return
        group, futures = waiting.popleft()
        yield _described(group, [future.result() for future in futures], descriptor)


def _described(group: Sequence[int], found: Sequence[_Decoded | str], descriptor: Descriptor) -> Looks:
    images = {row: one for row, one in zip(group, found, strict=True) if isinstance(one, _Decoded)}
    decoded = list(images.values())
    return Looks(
        rows=np.array(list(images), np.int64),
        hashes=np.array([list(one.digest) for one in decoded], np.uint8).reshape(-1, 32),
        descriptors=descriptor.describe([one.pixels for one in decoded]) if decoded else np.zeros((0, 0), np.float32),
        thumbnails=np.array([one.thumbnail for one in decoded], np.uint8).reshape(-1, SIDE, SIDE, 3),
        sizes=np.array([one.size for one in decoded], np.int32).reshape(-1, 2),
        broken={row: one for row, one in zip(group, found, strict=True) if isinstance(one, str)},
    )


def look_by(
    engine: Engine,
    source: ScannedSource,
    *,
    describes: Descriptor,
    parts: LookParts,
    shard: tuple[int, int],
    progress: bool,
) -> None:
    """Look at the missing parts of a shard. Each part is one piece of work.

    Args:
        engine: the engine of the pieces; each piece writes its part.
        source: the source of the images.
        describes: the descriptor.
        parts: the parts of the scan.
        shard: the index and the count of the shard.
        progress: whether to show a progress bar.

    Raises:
        ConfigurationError: if written parts are missing, because the machines share no file system.
    """
    missing = parts.missing(shard)
    left = sum(last - first + 1 for first, last in missing)
    done = engine.map(_look_at_part, missing, shared=(source, describes, parts))
    with progress_bar(total=left, desc="scanning", unit="image", disable=not progress) as bar:
        for images in done:
            bar.update(images)
    if lost := parts.missing(shard):
        raise ConfigurationError(
            f"{len(lost)} of {len(missing)} parts that other processes wrote are not in {parts.folder}",
            expected="a folder that all machines share, under the same path",
            remedy="name a shared folder with --output",
        )


def _look_at_part(source: ScannedSource, describes: Descriptor, parts: LookParts, part: tuple[int, int]) -> int:
    """Write the looks of a part, and return the number of its images."""
    began = time.perf_counter()
    if not parts.has(part):
        with ThreadPoolExecutor(1) as pool:
            looks = Looks.joined(list(look_at(source, describes, groups_of(*part), pool=pool)))
        parts.append(part, replace(looks, seconds=time.perf_counter() - began))
    return part[1] - part[0] + 1
