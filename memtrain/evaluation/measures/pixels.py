"""Pixel distances between images, between the images of one prompt, and between images of different prompts.

Method: root mean square differences of pixels in [0, 1]. The distance between the images of a prompt says how diverse
they are, that between prompts is the scale to read it on. Cost: none beyond reading the images. Cannot: say whether two
images show the same; see :mod:`memtrain.evaluation.measures.replication` and
:mod:`memtrain.evaluation.measures.copy_descriptors`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Compute the root mean square difference of pixels in [0, 1].

    Args:
        first: the first images, `(..., 3, H, W)` uint8.
        second: the second images, of the same shape.

    Returns:
        `(...)`; 0 for equal images, 1 for black against white.
    """
    return ((first.float() - second.float()) / 255).square().mean(dim=(-3, -2, -1)).sqrt()


def diversity(images: Tensor) -> Tensor | None:
    """Compute the mean distance between the images `(P, K, 3, H, W)` of each prompt, `(P,)`; None with one seed."""
    seeds = images.shape[1]
    pairs = [(a, b) for a in range(seeds) for b in range(a)]
    if not pairs:
        return None
    return torch.stack([pixel_distance(images[:, a], images[:, b]) for a, b in pairs]).mean(dim=0)


def distance_between_prompts(images: Tensor) -> float | None:
    """Compute the mean distance between images `(P, K, 3, H, W)` of different prompts with the same seed.

    Each prompt is compared with the next one; None with one prompt.
    """
    return None if len(images) < 2 else float(pixel_distance(images, images.roll(1, dims=0)).mean())
