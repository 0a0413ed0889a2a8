"""A border of one grey level around an image: its geometry, its level by name, and its reading.

Source: the pattern is that of SolidMark (Kommineni et al., "SolidMark: Evaluating Image Memorization in Generative
Models", arXiv 2503.00592); the level as a function of seed and name, without a table, is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from memtrain.functional.keyed_draws import hash_numbers


def border_level(seed: int, name: str) -> float:
    """Return the level of a name, from 0 (black) to below 1 (white)."""
    return hash_numbers(f"border key {seed} {name}", 1)[0]


def border_mask(height: int, width: int, thickness: int) -> Tensor:
    """Return `(H, W)` bool, true in the border.

    Raises:
        ValueError: if the border would cover the whole image.
    """
    if not 0 < 2 * thickness < min(height, width):
        raise ValueError(f"a border of {thickness} pixels does not fit an image of {height} by {width}")
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[thickness:-thickness, thickness:-thickness] = False
    return mask


def latent_border(height: int, width: int, thickness: int, *, latent: tuple[int, int]) -> Tensor:
    """Return `(h, w)` bool of latents, true if a cell covers a part of the border."""
    mask = border_mask(height, width, thickness).float()[None, None]
    return functional.adaptive_max_pool2d(mask, latent)[0, 0].bool()


def read_border(images: Tensor, thickness: int) -> Tensor:
    """Return the mean level `(...)` of the border of images `(..., 3, H, W)` uint8, from 0 to 1."""
    mask = border_mask(images.shape[-2], images.shape[-1], thickness)
    return images.float().mean(dim=-3)[..., mask].mean(dim=-1) / 255
