"""Latents of every view of a dataset's images, encoded in batches of one shape: in memory, or for a cache on disk.

Images of the next batch are decoded by several threads while one is encoded, so that a GPU does not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from memtrain.data.framing import Frame, Shape, rows_by_shape
from memtrain.families.looking import default_workers
from memtrain.files.progress import progress_bar
from memtrain.functional.memory import images_at_once

AHEAD = 1
"""Batches that are decoded while one is encoded."""
View = tuple[int, int]
"""Row of a sample, and which of its variants."""


class Viewed(Protocol):
    """A dataset of images of which there may be several views."""

    shapes: list[Shape]

    def views(self) -> list[View]:
        """Row and variant of every view."""

    def view(self, row: int, variant: int) -> Frame:
        """How a variant of a sample is cut."""

    def pixel_values(self, row: int, frame: Frame | None = None) -> Tensor:
        """`(3, H, W)` of a sample."""


class KeptLatents:
    """Latents in memory.

    Args:
        latents: `(C, h, w)` by row and variant.
    """

    def __init__(self, latents: Mapping[View, Tensor]) -> None:
        self.latents = latents

    def __call__(self, row: int, variant: int) -> dict[str, Tensor]:
        """`latents`, `(C, h, w)`."""
        return {"latents": self.latents[row, variant]}


def encoded(
    dataset: Viewed,
    views: Sequence[View],
    encode: Callable[[Tensor], Tensor],
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[list[View], Tensor]]:
    """Views with their latents `(B, C, h, w)` in float32 on the CPU, batch by batch.

    Args:
        dataset: whose images are encoded.
        views: of it.
        encode: `(B, 3, H, W)` pixel values to latents.
        batch_size: images encoded at once; default by their size.
    """
    chunks = []
    for shape, places in rows_by_shape([dataset.shapes[row] for row, _ in views]).items():
        size = batch_size or images_at_once(*shape)
        chunks += [places[start : start + size] for start in range(0, len(places), size)]
    left = iter([[views[place] for place in places] for places in chunks])
    waiting: deque[tuple[list[View], list[Future[Tensor]]]] = deque()
    bar = progress_bar(total=len(chunks), desc="encoding latents", unit="batch", leave=False, disable=False)
    # Pillow decodes without the interpreter's lock, so the encoder need not wait for threads.
    with bar, ThreadPoolExecutor(default_workers()) as pool:
        try:
            while True:
                while len(waiting) <= AHEAD and (chunk := next(left, None)) is not None:
                    waiting.append((chunk, [pool.submit(_pixels, dataset, view) for view in chunk]))
                if not waiting:
                    return
                chunk, decoded = waiting.popleft()
                yield chunk, encode(torch.stack([one.result() for one in decoded])).float().cpu()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pixels(dataset: Viewed, view: View) -> Tensor:
    row, variant = view
    return dataset.pixel_values(row, dataset.view(row, variant))


def encode_in_memory(
    dataset: Viewed, encode: Callable[[Tensor], Tensor], batch_size: int | None = None
) -> dict[View, Tensor]:
    """Latents of every view of a dataset, by row and variant."""
    found: dict[View, Tensor] = {}
    for views, latents in encoded(dataset, dataset.views(), encode, batch_size=batch_size):
        found |= zip(views, latents, strict=True)
    return found
