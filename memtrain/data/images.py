"""From a decoded image to pixel values: resize, crop, scale to [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps

from memtrain.data.framing import Frame
from memtrain.functional.pixels import from_uint8


def to_pixel_values(image: Image.Image, frame: Frame | int) -> torch.Tensor:
    """Resize an image (Lanczos) until it just covers its target, crop it, and scale it to [-1, 1].

    Args:
        image: an RGB image.
        frame: the cut of the image; a number means the center square with that many pixels a side.

    Returns:
        The pixel values, `(3, H, W)` float32.
    """
    pixels = torch.from_numpy(np.array(framed(image, frame), dtype=np.uint8))
    return from_uint8(pixels.permute(2, 0, 1))


def framed(
    image: Image.Image, frame: Frame | int, *, method: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Return the part of an image that a frame shows, in the frame's size, resized by `method`."""
    if isinstance(frame, int):
        frame = Frame((frame, frame))
    if frame.flipped:
        image = ImageOps.mirror(image)
    size = frame.shape[1], frame.shape[0]
    if image.size == size:
        return image
    return ImageOps.fit(image, size, method=method, centering=(frame.across, frame.along))
