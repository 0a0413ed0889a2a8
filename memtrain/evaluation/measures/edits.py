"""Edits that a copied picture goes through, as the web, a photo library or a scraped set makes them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from memtrain.files.pictures import read_image

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]
"""From an RGB image and what chance decides to an image of the same size."""


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """As JPEG of this quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return read_image(file)


def crop(image: Image.Image, share: float, chance: np.random.Generator) -> Image.Image:
    """A window of this share of both sides, anywhere, scaled to the whole."""
    width, height = (round(side * share) for side in image.size)
    left, top = chance.integers(0, image.width - width + 1), chance.integers(0, image.height - height + 1)
    window = image.crop((int(left), int(top), int(left) + width, int(top) + height))
    return window.resize(image.size, Image.Resampling.BICUBIC)


def colour(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Another white balance, saturation, brightness and contrast, each within a quarter or so."""
    gains = chance.uniform(0.85, 1.15, 3)
    image = Image.fromarray(np.clip(np.asarray(image, dtype=float) * gains, 0, 255).astype(np.uint8))
    for kind in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = kind(image).enhance(float(chance.uniform(0.75, 1.25)))
    return image


def ground(image: Image.Image) -> tuple[int, ...]:
    """The median colour of the border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(border, axis=0))


def shift(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """5 of 64 pixels in both directions, on its own ground."""
    across, down = (int(side) * image.width // 64 for side in chance.choice([-5, 5], 2))
    moved = Image.new("RGB", image.size, ground(image))
    moved.paste(image, (across, down))
    return moved


def shrink(image: Image.Image, share: float) -> Image.Image:
    """To this share of both sides, in the middle of its own ground."""
    width, height = (round(side * share) for side in image.size)
    small = Image.new("RGB", image.size, ground(image))
    small.paste(
        image.resize((width, height), Image.Resampling.BICUBIC),
        ((image.width - width) // 2, (image.height - height) // 2),
    )
    return small


def rotate(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """By 5 degrees to either side."""
    angle = float(chance.choice([-5, 5]))
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground(image))


def noise(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Gaussian, 12 grey levels."""
    noisy = np.asarray(image, dtype=float) + chance.normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def caption_over(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """A word written over it."""
    image = image.copy()
    place = (image.width // 8, int(chance.uniform(0.1, 0.75) * image.height))
    ImageDraw.Draw(image).text(place, "FREE", fill=(200, 0, 0))
    return image


def frame(image: Image.Image) -> Image.Image:
    """A dark frame of a twentieth of the width."""
    image = image.copy()
    edge = (0, 0, image.width - 1, image.height - 1)
    ImageDraw.Draw(image).rectangle(edge, outline=(20, 20, 20), width=max(1, image.width // 21))
    return image


LIGHT: dict[str, Edit] = {
    "JPEG 40": lambda image, chance: jpeg(image, 40),
    "crop 84 %": lambda image, chance: crop(image, 0.84, chance),
    "mirror": lambda image, chance: ImageOps.mirror(image),
    "colour": colour,
    "shift 5 px": shift,
    "shrink 78 %": lambda image, chance: shrink(image, 0.78),
    "grey": lambda image, chance: image.convert("L").convert("RGB"),
    "rotation 5°": rotate,
    "blur": lambda image, chance: image.filter(ImageFilter.GaussianBlur(1.2 * image.width / 64)),
    "noise": noise,
}
"""Edits by which a picture stays itself."""
STRONG: dict[str, Edit] = {
    "mirror, colour and crop": lambda image, chance: crop(colour(ImageOps.mirror(image), chance), 0.8, chance),
    "crop 60 %": lambda image, chance: crop(image, 0.6, chance),
    "frame": lambda image, chance: frame(image),
    "text": caption_over,
}
"""Edits that take much away or lay something over."""
EDITS = {**LIGHT, **STRONG}
