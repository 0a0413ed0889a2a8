"""From a decoded image to pixel values: resize, centre crop, scale to [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps

from memtrain.functional.pixels import from_uint8


def to_pixel_values(image: Image.Image, resolution: int) -> torch.Tensor:
    """Resize the shorter side to `resolution` (Lanczos), crop the centre, scale to [-1, 1].

    Args:
        image: an RGB image.
        resolution: height and width of the result, pixels.

    Returns:
        `(3, resolution, resolution)` float32.
    """
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), method=Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return from_uint8(pixels.permute(2, 0, 1))
