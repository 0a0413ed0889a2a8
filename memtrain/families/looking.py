"""Looking at images: each is decoded once, and a hash, a descriptor, a thumbnail and its size are kept of it.

Images are decoded by several threads, which is enough, because Pillow works without the interpreter's lock. Meanwhile
the images before are described. At most :data:`AHEAD` groups of images wait to be described, none of them much larger
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
"""Groups that are decoded ahead of the one that is described."""
ENOUGH = 512
"""Pixels of a side, in the geometric mean of both, that a description needs: an image of twice as many is halved."""


class ScannedSample(Protocol):
    """What a scan asks of a sample."""

    @property
    def key(self) -> str:
        """Names it for good."""

    @property
    def caption(self) -> str:
        """Its text."""


class ScannedSource(Protocol):
    """What a scan asks of a source; :class:`memtrain.data.source.SampleSource` is one."""

    @property
    def samples(self) -> Sequence[ScannedSample]:
        """All samples."""

    def load_image(self, index: int) -> Image.Image:
        """The decoded RGB image of `samples[index]`."""


@dataclass(frozen=True)
class _Decoded:
    """One image, small enough to be kept for a while."""

    pixels: Image.Image
    digest: bytes
    thumbnail: NDArray[np.uint8]
    size: tuple[int, int]


def default_workers() -> int:
    """Threads that decode: as many as this process may use processors, eight at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def decode(source: ScannedSource, index: int) -> _Decoded | str:
    """One image of a source, or why it cannot be read.

    Args:
        source: has the image.
        index: of the sample.
    """
    try:
        image = source.load_image(index)
    except DataError as error:
        return error.problem
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises, from a source that passes it on
        return str(error) or type(error).__name__
    factor = int((image.width * image.height) ** 0.5) // ENOUGH
    small = image.reduce(min(factor, *image.size)) if factor > 1 else image
    return _Decoded(small, pixel_hash(image), thumbnail(small), image.size)


def groups_of(first: int, last: int) -> list[range]:
    """The samples from `first` to `last` in the groups that are described together."""
    return [range(start, min(start + GROUP, last + 1)) for start in range(first, last + 1, GROUP)]


def look_at(
    source: ScannedSource, descriptor: Descriptor, groups: Iterable[Sequence[int]], *, pool: ThreadPoolExecutor
) -> Iterator[Looks]:
    """The looks of samples, a group after the other.

    Args:
        source: has the images.
        descriptor: describes them.
        groups: numbers of the samples, of :func:`groups_of`; asked for as they are needed.
        pool: of the threads that decode.

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
    """Look at what is missing of a shard, a part of the scan as a piece of work each.

    Args:
        engine: runs the pieces, each of which writes its part.
        source: has the images.
        describes: the descriptor.
        parts: of the scan.
        shard: index and count.
        progress: show a bar.

    Raises:
        ConfigurationError: if what was written is not there, because the machines share no file system.
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
            remedy="name one with --output",
        )


def _look_at_part(source: ScannedSource, describes: Descriptor, parts: LookParts, part: tuple[int, int]) -> int:
    """The number of images in a part, whose looks are written now."""
    began = time.perf_counter()
    if not parts.has(part):
        with ThreadPoolExecutor(1) as pool:
            looks = Looks.joined(list(look_at(source, describes, groups_of(*part), pool=pool)))
        parts.append(part, replace(looks, seconds=time.perf_counter() - began))
    return part[1] - part[0] + 1
