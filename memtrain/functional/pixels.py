"""Conversion between pixel values in [-1, 1], for autoencoders, and uint8 images, for files."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixel_values: Tensor) -> Tensor:
    """Convert pixel values to uint8 by clamping and rounding, as diffusers does when it makes PNG files."""
    return pixel_values.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_uint8(images: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert images to pixel values, computed in `dtype`; :func:`to_uint8` gives fp32 values back exactly."""
    return images.to(dtype) / 127.5 - 1
