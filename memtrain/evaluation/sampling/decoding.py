"""Images from latents, as diffusers makes them."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.models.stock_pipeline import decode


def to_uint8(pixel_values: Tensor) -> Tensor:
    """Pixel values in [-1, 1], of any shape, to uint8 by rounding, as diffusers does when it makes PNG files."""
    return pixel_values.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu()


def decode_images(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Clean latents `(B, C, h, w)` to images `(B, 3, H, W)` uint8, on the CPU; no safety checker sees them."""
    with torch.no_grad():
        return to_uint8(decode(pipeline, latents))
