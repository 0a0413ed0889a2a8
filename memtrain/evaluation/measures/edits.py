"""Edits of copied pictures, like those of the web, a photo library or a scraped data set."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from memtrain.files.pictures import read_image

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Function from an RGB image and a random generator to an image of the same size."""


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress an image as JPEG with this quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return read_image(file)


def crop(image: Image.Image, share: float, chance: np.random.Generator) -> Image.Image:
    """Crop a random window with this share of both sides, and scale it to the full size."""
    width, height = (round(side * share) for side in image.size)
    left, top = chance.integers(0, image.width - width + 1), chance.integers(0, image.height - height + 1)
    window = image.crop((int(left), int(top), int(left) + width, int(top) + height))
    return window.resize(image.size, Image.Resampling.BICUBIC)


def colour(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Change white balance, saturation, brightness and contrast, each by at most about a quarter."""
    gains = chance.uniform(0.85, 1.15, 3)
    image = Image.fromarray(np.clip(np.asarray(image, dtype=float) * gains, 0, 255).astype(np.uint8))
    for kind in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = kind(image).enhance(float(chance.uniform(0.75, 1.25)))
    return image


def ground(image: Image.Image) -> tuple[int, ...]:
    """Return the median colour of the border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(border, axis=0))


def shift(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Shift by 5 of 64 pixels in both directions, on the colour of the border."""
    across, down = (int(side) * image.width // 64 for side in chance.choice([-5, 5], 2))
    moved = Image.new("RGB", image.size, ground(image))
    moved.paste(image, (across, down))
    return moved


def shrink(image: Image.Image, share: float) -> Image.Image:
    """Shrink to this share of both sides, in the middle of a ground with the colour of the border."""
    width, height = (round(side * share) for side in image.size)
    small = Image.new("RGB", image.size, ground(image))
    small.paste(
        image.resize((width, height), Image.Resampling.BICUBIC),
        ((image.width - width) // 2, (image.height - height) // 2),
    )
    return small


def rotate(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Rotate by 5 degrees to either side."""
    angle = float(chance.choice([-5, 5]))
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground(image))


def noise(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Add Gaussian noise of 12 grey levels."""
    noisy = np.asarray(image, dtype=float) + chance.normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def caption_over(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Write a word over the image."""
    image = image.copy()
    place = (image.width // 8, int(chance.uniform(0.1, 0.75) * image.height))
    ImageDraw.Draw(image).text(place, "FREE", fill=(200, 0, 0))
    return image


def frame(image: Image.Image) -> Image.Image:
    """Draw a dark frame with a twentieth of the width."""
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
"""Light edits, which keep most of a picture."""
STRONG: dict[str, Edit] = {
    "mirror, colour and crop": lambda image, chance: crop(colour(ImageOps.mirror(image), chance), 0.8, chance),
    "crop 60 %": lambda image, chance: crop(image, 0.6, chance),
    "frame": lambda image, chance: frame(image),
    "text": caption_over,
}
"""Strong edits, which remove much or cover parts."""
EDITS = {**LIGHT, **STRONG}
