"""Images that somebody else made: which are decoded, how large, and to what.

| | |
|---|---|
| accepted | :data:`FORMATS`, whatever a file is called: 8 and 16 bits a channel, grey, palette, CMYK, LAB, any size |
| of several frames | the first |
| turned | as the EXIF entry says; one that cannot be read is passed over, the pixels are not harmed by it |
| transparent | white shows through |
| refused | other formats, above all those that Pillow hands to another program (EPS to Ghostscript); more than
:data:`MOST_PIXELS`; files that are cut short; 32-bit pixels, whose range is not known; compressed texts beyond Pillow's
limit |

:data:`SUFFIXES` are the names of images that are decoded here, :data:`UNDECODED_SUFFIXES` those of images that are not,
which nobody may pass over in silence.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that are decoded, as Pillow names them; what it opens as JPEG may be MPO, which it knows by no other name."""
SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".avifs", ".gif", ".bmp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    }
)
"""Of the names of images that are decoded, in lower case."""
UNDECODED_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".psd", ".psb", ".xcf", ".kra", ".svg", ".eps", ".tga", ".exr", ".hdr"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".dds", ".ico", ".pcx"),
    }
)
"""Of the names of images that are not decoded here, in lower case."""
MOST_PIXELS = 178_956_970
"""Pixels of an image at most: Pillow's own limit, a third of a gigabyte of RGB."""


_FILTERS = threading.Lock()
"""Held while Python's filters of warnings are exchanged, which all threads share."""
if hasattr(os, "register_at_fork"):  # a loader process must not begin with a lock that nobody will open
    os.register_at_fork(before=_FILTERS.acquire, after_in_parent=_FILTERS.release, after_in_child=_FILTERS.release)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, of images beyond half its limit of pixels and of EXIF entries that are cut short."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class PictureError(ValueError):
    """A file is no image that is decoded; the message says why, in one line."""


def opened_image(file: str | Path | BinaryIO) -> Image.Image:
    """An image that is not decoded yet.

    Args:
        file: a path, or an open file.

    Raises:
        OSError: if it is none of :data:`FORMATS` (`PIL.UnidentifiedImageError`), or cannot be read.
        Image.DecompressionBombError: if it has too many pixels.
    """
    with _quiet():
        image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS}")
    return image


def upright(image: Image.Image) -> Image.Image:
    """A decoded image as its EXIF entry turns it; as it is where the entry cannot be read.

    Args:
        image: opened by :func:`opened_image`.

    Raises:
        PictureError: if it cannot be decoded.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever they stumble over in a broken file
        image.close()
        raise PictureError(reason(error)) from error
    try:
        with _quiet():
            image.getexif()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # likewise; such entries are written by many a tool, and the picture is whole
        return image


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded image in RGB, on white where it is transparent.

    Raises:
        PictureError: if its pixels have 32 bits, of a range that is not known.
    """
    if image.mode in ("I", "F"):
        raise PictureError("it has 32-bit pixels of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255, which is white almost everywhere
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    """The decoded RGB image of a file: upright, on white.

    Args:
        file: a path, an open file, or what :func:`opened_image` gave.

    Raises:
        PictureError: if it is no image that is decoded here, or damaged.
        OSError: if a path cannot be read.
    """
    try:
        image = file if isinstance(file, Image.Image) else opened_image(file)
    except Image.DecompressionBombError as error:
        raise PictureError(reason(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise PictureError(reason(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise PictureError(reason(error)) from error
    try:
        return as_rgb(upright(image))
    except (PictureError, MemoryError):
        raise
    except Exception as error:  # as above
        raise PictureError(reason(error)) from error


def reason(error: BaseException) -> str:
    """What Pillow says of a file, in one line."""
    # A file in memory has no name but an address, which is another one each time.
    return " ".join(re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).split()) or type(error).__name__
