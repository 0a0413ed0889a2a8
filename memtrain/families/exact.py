"""Exact copies: files with equal decoded pixels, whatever their name, format or metadata.

Cost: one SHA-256 of the pixels. Cannot: see a copy in which one pixel differs; :mod:`memtrain.families.near` can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pixel_hash(image: Image.Image) -> bytes:
    """Return 32 bytes that two images share if their RGB pixels and their size are equal.

    Args:
        image: a decoded image; other modes than RGB are converted.
    """
    pixels = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()


def first_equal(values: Iterable[Hashable]) -> NDArray[np.int64]:
    """Return the index of the first equal value for each of n values, `(n,)`."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(value, index) for index, value in enumerate(values)], dtype=np.int64)
