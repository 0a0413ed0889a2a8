"""Images that somebody else made: the formats that are decoded, their sizes, and the result.

| case | treatment |
|---|---|
| accepted | :data:`FORMATS`, whatever a file's name: 8 and 16 bits a channel, gray, palette, CMYK, LAB, any size |
| several frames | the first frame is used |
| rotation | as the EXIF entry says; an entry that cannot be read is ignored, because the pixels are intact |
| transparency | white shows through |
| refused | the cases below |

Other formats are refused, above all the formats that Pillow hands to another program (EPS to Ghostscript). Images with
more than :data:`MOST_PIXELS`, files that are cut short, and compressed texts beyond Pillow's limit are refused, too. So
are 32-bit pixels, whose range is not known.

:data:`SUFFIXES` are the endings of images that are decoded. :data:`UNDECODED_SUFFIXES` are the endings of images that
are not decoded, which no source may ignore silently.
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
"""The formats that are decoded, by Pillow's names. A file that Pillow opens as JPEG may be MPO."""
SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".avifs", ".gif", ".bmp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    }
)
"""Endings of the names of decoded images, in lower case."""
UNDECODED_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".psd", ".psb", ".xcf", ".kra", ".svg", ".eps", ".tga", ".exr", ".hdr"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".dds", ".ico", ".pcx"),
    }
)
"""Endings of the names of images that are not decoded, in lower case."""
MOST_PIXELS = 178_956_970
"""The largest number of pixels of an image: Pillow's own limit, a third of a gigabyte of RGB."""


_FILTERS = threading.Lock()
"""A lock for the exchange of Python's warning filters, which all threads share."""
if hasattr(os, "register_at_fork"):  # a loader process must not begin with a lock that nobody opens
    os.register_at_fork(before=_FILTERS.acquire, after_in_parent=_FILTERS.release, after_in_child=_FILTERS.release)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Pillow's warnings of images beyond half its limit of pixels, and of EXIF entries that are cut short."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class PictureError(ValueError):
    """A file that is not an image of a decoded kind. The message gives the reason in one line."""


def opened_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image without decoding it.

    Args:
        file: a path, or an open file.

    Raises:
        OSError: if it has none of the :data:`FORMATS` (`PIL.UnidentifiedImageError`), or cannot be read.
        Image.DecompressionBombError: if it has too many pixels.
    """
    with _quiet():
        image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS}")
    return image


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it as its EXIF entry says; an entry that cannot be read is ignored.

    Args:
        image: an image that :func:`opened_image` opened.

    Raises:
        PictureError: if the image cannot be decoded.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors for a broken file
        image.close()
        raise PictureError(reason(error)) from error
    try:
        with _quiet():
            image.getexif()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # many tools write such entries, and the picture is intact
        return image


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to RGB, on white where it is transparent.

    Raises:
        PictureError: if its pixels have 32 bits, of an unknown range.
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
    """Read the image of a file in RGB: decoded, upright, on white.

    Args:
        file: a path, an open file, or an image that :func:`opened_image` opened.

    Raises:
        PictureError: if it is not an image of a decoded kind, or is damaged.
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
    """Return Pillow's words about a file in one line."""
    # A file in memory has an address instead of a name, and the address changes each time.
    return " ".join(re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).split()) or type(error).__name__
