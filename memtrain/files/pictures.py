"""Images that somebody else made: which formats are decoded.

Accepted: :data:`FORMATS`, whatever a file is called. Refused: every other format, above all those that Pillow hands to
another program (EPS to Ghostscript), and pictures beyond Pillow's limit of pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from PIL import Image

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that are decoded, as Pillow names them."""


def opened_image(file: str | Path | BinaryIO) -> Image.Image:
    """An image that is not decoded yet.

    Args:
        file: a path, or an open file.

    Raises:
        OSError: if it is none of :data:`FORMATS` (`PIL.UnidentifiedImageError`), or cannot be read.
        Image.DecompressionBombError: if it has too many pixels.
    """
    return Image.open(file, formats=FORMATS)
