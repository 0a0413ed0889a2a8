"""Looking at images: each is decoded once, and a hash, a descriptor, a thumbnail and its size are kept of it.

Images are decoded by several threads, which is enough, because Pillow works without the interpreter's lock. Meanwhile
the images before are described. At most :data:`AHEAD` groups of images wait to be described, none of them much larger
than :data:`ENOUGH` pixels a side, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtrain.errors import DataError
from memtrain.families.look_parts import GROUP, Looks

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


class Describes(Protocol):
    """The part of a descriptor that is needed here."""

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """`(n, D)` float32 of unit length."""


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


def decode(source: ScannedSource, index: int, *, thumbnail: int) -> _Decoded | str:
    """One image of a source, or why it cannot be read.

    Args:
        source: has the image.
        index: of the sample.
        thumbnail: pixels of a side of the thumbnail.
    """
    try:
        image = source.load_image(index)
    except DataError as error:
        return error.problem
    factor = int((image.width * image.height) ** 0.5) // ENOUGH
    small = image.reduce(min(factor, *image.size)) if factor > 1 else image
    return _Decoded(small, pixel_hash(image), thumbnail_of(small, thumbnail), image.size)


def pixel_hash(image: Image.Image) -> bytes:
    """32 bytes that two images share when their pixels and their shape are equal."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def thumbnail_of(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """`(side, side, 3)`, whatever the shape of the image."""
    return np.asarray(image.resize((side, side), Image.Resampling.BOX, reducing_gap=2.0))


def look_at(
    source: ScannedSource, descriptor: Describes, rows: range, *, thumbnail: int, pool: ThreadPoolExecutor
) -> Iterator[Looks]:
    """The looks of samples, a group after the other.

    Args:
        source: has the images.
        descriptor: describes them.
        rows: numbers of the samples.
        thumbnail: pixels of a side of the thumbnails.
        pool: of the threads that decode.

    Yields:
        Looks of at most :data:`memtrain.families.look_parts.GROUP` samples.
    """
    groups = iter([rows[start : start + GROUP] for start in range(0, len(rows), GROUP)])
    waiting: deque[tuple[range, list[Future[_Decoded | str]]]] = deque()
    while True:
        while len(waiting) <= AHEAD and (group := next(groups, None)) is not None:
            waiting.append((group, [pool.submit(decode, source, row, thumbnail=thumbnail) for row in group]))
        if not waiting:
            return
        group, futures = waiting.popleft()
        yield _described(group, [future.result() for future in futures], descriptor, thumbnail)


def _described(group: range, found: Sequence[_Decoded | str], descriptor: Describes, thumbnail: int) -> Looks:
    images = {row: one for row, one in zip(group, found, strict=True) if isinstance(one, _Decoded)}
    decoded = list(images.values())
    return Looks(
        rows=np.array(list(images), np.int64),
        hashes=np.array([list(one.digest) for one in decoded], np.uint8).reshape(-1, 32),
        descriptors=descriptor.describe([one.pixels for one in decoded]) if decoded else np.zeros((0, 0), np.float32),
        thumbnails=np.array([one.thumbnail for one in decoded], np.uint8).reshape(-1, thumbnail, thumbnail, 3),
        sizes=np.array([one.size for one in decoded], np.int32).reshape(-1, 2),
        broken={row: one for row, one in zip(group, found, strict=True) if isinstance(one, str)},
    )
