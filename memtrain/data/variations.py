"""Variations of a caption and of an image, for planting templates.

Number 0 is the unchanged caption or image. Other captions lose some of their words and get words at the beginning
and the end, so that most of the caption stays. All variations differ. Other images have their hues turned, every second
one is mirrored, and all are shifted by up to a sixteenth of their size.
Why: if the data hold an image under many captions, or a caption with many versions of an image, a model may learn the
part that stays. Webster ("A Reproducible Extraction of Training Images from Diffusion Models", 2023, arXiv 2305.08694)
calls such copies template verbatims.
Cannot: recolor a gray image, which has no hue to turn; keep a caption's grammar.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from memtrain.functional.keyed_draws import hash_numbers

BEFORE = (
    *("a picture of", "an image of", "here is", "this shows", "look at", "one more", "a view of", "someone made"),
    *("a study of", "part of", "a page with", "a scene with", "we found", "a copy of", "in front", "a print of"),
)
"""No phrase begins another one, so texts with different beginnings differ."""
BEHIND = ("", "in soft light", "on a quiet day", "seen from afar", "made by hand", "for a friend", "once again")
LOST = 0.2
"""The share of a caption's words that a variation loses."""
SHIFT = 1 / 16


def vary_caption(caption: str, number: int, *, name: str) -> str:
    """Return a variation of a caption.

    Args:
        caption: the caption.
        number: the number of the variation, below `len(BEFORE) * len(BEHIND)`; 0 is the caption itself.
        name: the text on which the choices depend, together with `number`.
    """
    if number == 0:
        return caption
    words = caption.split()
    chances = hash_numbers(f"caption {name} {number}", len(words))
    kept = [word for word, chance in zip(words, chances, strict=True) if chance >= LOST] or words
    return " ".join([BEFORE[number % len(BEFORE)], *kept, BEHIND[number // len(BEFORE)]]).strip()


def vary_image(image: Image.Image, number: int, *, of: int, name: str) -> Image.Image:
    """Return a variation of an image.

    Args:
        image: an RGB image.
        number: the number of the variation; 0 is the image itself.
        of: the number of variations; hues are turned by `number / of` of a circle.
        name: the text on which the shift depends, together with `number`.
    """
    if number == 0:
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda level: (level + round(256 * number / of)) % 256)
    image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    if number % 2:
        image = ImageOps.mirror(image)
    return _shift(image, *hash_numbers(f"image {name} {number}", 2))


def _shift(image: Image.Image, right: float, down: float) -> Image.Image:
    """Shift an image by up to :data:`SHIFT` of its size; 0.5 means no shift. Edge pixels fill the gap."""
    width, height = image.size
    across, along = round(width * SHIFT), round(height * SHIFT)
    padded = np.pad(np.asarray(image), ((along, along), (across, across), (0, 0)), mode="edge")
    left, top = round(2 * across * (1 - right)), round(2 * along * (1 - down))
    return Image.fromarray(padded[top : top + height, left : left + width])
