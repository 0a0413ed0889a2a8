"""Latents of every view of a dataset's images, encoded in batches of one shape, in memory or for a cache on disk.

Several threads decode the images of the next batch while one batch is encoded, so that a GPU does not wait.
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
"""The number of batches that are decoded while one is encoded."""
View = tuple[int, int]
"""The row of a sample, and the number of its variant."""


class Viewed(Protocol):
    """A dataset of images with one or more views of each image."""

    shapes: list[Shape]

    def views(self) -> list[View]:
        """Return the row and variant of every view."""

    def view(self, row: int, variant: int) -> Frame:
        """Return the frame that cuts a variant of a sample."""

    def pixel_values(self, row: int, frame: Frame | None = None) -> Tensor:
        """Return the pixel values of a sample, `(3, H, W)`."""


class KeptLatents:
    """Latents in memory.

    Args:
        latents: the latents `(C, h, w)` by row and variant.
    """

    def __init__(self, latents: Mapping[View, Tensor]) -> None:
        self.latents = latents

    def __call__(self, row: int, variant: int) -> dict[str, Tensor]:
        """Return `latents`, `(C, h, w)`."""
        return {"latents": self.latents[row, variant]}


def encoded(
    dataset: Viewed,
    views: Sequence[View],
    encode: Callable[[Tensor], Tensor],
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[list[View], Tensor]]:
    """Yield views with their latents `(B, C, h, w)` in float32 on the CPU, batch by batch.

    Args:
        dataset: the dataset of the images.
        views: the views to encode.
        encode: the function from `(B, 3, H, W)` pixel values to latents.
        batch_size: the number of images encoded at once; by default their size decides.
    """
    chunks = []
    for shape, places in rows_by_shape([dataset.shapes[row] for row, _ in views]).items():
        size = batch_size or images_at_once(*shape)
        chunks += [places[start : start + size] for start in range(0, len(places), size)]
    left = iter([[views[place] for place in places] for places in chunks])
    waiting: deque[tuple[list[View], list[Future[Tensor]]]] = deque()
    bar = progress_bar(total=len(chunks), desc="encoding latents", unit="batch", leave=False)
    # Pillow decodes without the interpreter's lock, so the threads do not delay the encoder.
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
    """Encode every view of a dataset, and return the latents by row and variant."""
    found: dict[View, Tensor] = {}
    for views, latents in encoded(dataset, dataset.views(), encode, batch_size=batch_size):
        found |= zip(views, latents, strict=True)
    return found
