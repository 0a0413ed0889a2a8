"""The looks of an image, for comparisons: a hash of its pixels, a descriptor and a thumbnail."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtrain.families.registration import SIDE


class ImageLooks(Protocol):
    """The looks of n images."""

    @property
    def hashes(self) -> NDArray[np.uint8]:
        """The hashes `(n, 32)`, from :func:`memtrain.families.exact.pixel_hash`."""

    @property
    def descriptors(self) -> NDArray[np.float32]:
        """The descriptors `(n, D)`, of unit length."""

    @property
    def thumbnails(self) -> NDArray[np.uint8]:
        """The thumbnails `(n, 32, 32, 3)`, from :func:`thumbnail`."""


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return a thumbnail `(32, 32, 3)` of the whole image, whatever its shape."""
    pixels = image if image.mode == "RGB" else image.convert("RGB")
    return np.asarray(pixels.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0))
