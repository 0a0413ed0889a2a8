"""Embedded pictures, edits of them, and looks."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.exact import pixel_hash
from memtrain.families.looks import thumbnail
from tests.conftest import ROOT


@cache
def clip_art() -> tuple[tuple[Image.Image, str], ...]:
    """The embedded clip art with its captions, in order."""
    with tarfile.open(ROOT / "assets" / "clipart-pd.tar") as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}
    names = sorted(name.removesuffix(".png") for name in files if name.endswith(".png"))
    return tuple(
        (Image.open(io.BytesIO(files[f"{name}.png"])).convert("RGB"), files[f"{name}.txt"].decode()) for name in names
    )


def captioned(*words: str) -> list[Image.Image]:
    """The pictures whose captions name any of these."""
    return [image for image, caption in clip_art() if any(word in caption for word in words)]


def spread(count: int) -> list[Image.Image]:
    """Pictures from all over the collection."""
    every = len(clip_art()) // count
    return [image for image, _ in clip_art()[::every][:count]]


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, left: int = 4, top: int = 6) -> Image.Image:
    return image.crop((left, top, left + 54, top + 54)).resize((64, 64), Image.Resampling.BICUBIC)


def colour(image: Image.Image) -> Image.Image:
    warm = np.asarray(image, dtype=float) * [1.0, 0.92, 0.85]
    return ImageEnhance.Color(Image.fromarray(warm.astype(np.uint8))).enhance(1.2)


def shift(image: Image.Image) -> Image.Image:
    moved = Image.new("RGB", (64, 64), "white")
    moved.paste(image, (5, -5))
    return moved


def shrink(image: Image.Image) -> Image.Image:
    small = Image.new("RGB", (64, 64), "white")
    small.paste(image.resize((50, 50), Image.Resampling.BICUBIC), (7, 7))
    return small


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": jpeg,
    "crop": crop,
    "mirror": ImageOps.mirror,
    "colour": colour,
    "shift": shift,
    "shrink": shrink,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "turn": lambda image: image.rotate(5, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)),
}


@dataclass(frozen=True)
class Looks:
    hashes: NDArray[np.uint8]
    descriptors: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]


def looks(images: Sequence[Image.Image]) -> Looks:
    hashes = np.array([list(pixel_hash(image)) for image in images], dtype=np.uint8).reshape(-1, 32)
    thumbnails = np.array([thumbnail(image) for image in images], dtype=np.uint8).reshape(-1, 32, 32, 3)
    return Looks(hashes, BuiltIn().describe(images), thumbnails)
