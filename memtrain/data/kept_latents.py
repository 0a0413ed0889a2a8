"""Latents of every view of a dataset's images, encoded in batches of one shape: in memory, or for a cache on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from memtrain.data.framing import Frame, Shape, rows_by_shape
from memtrain.functional.memory import images_at_once

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

    def __call__(self, row: int, variant: int) -> Tensor:
        """`(C, h, w)`."""
        return self.latents[row, variant]


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
    for places in tqdm(chunks, desc="encoding latents", unit="batch", leave=False, disable=None):
        chunk = [views[place] for place in places]
        pixels = [dataset.pixel_values(row, dataset.view(row, variant)) for row, variant in chunk]
        yield chunk, encode(torch.stack(pixels)).float().cpu()


def encode_in_memory(
    dataset: Viewed, encode: Callable[[Tensor], Tensor], batch_size: int | None = None
) -> dict[View, Tensor]:
    """Latents of every view of a dataset, by row and variant."""
    found: dict[View, Tensor] = {}
    for views, latents in encoded(dataset, dataset.views(), encode, batch_size=batch_size):
        found |= zip(views, latents, strict=True)
    return found
