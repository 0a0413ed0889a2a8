"""Canaries: synthetic images with made-up captions, planted at a known repetition.

A canary shows colored shapes on a pattern, drawn from a seed and a number. Its caption of ordinary words says nothing
about the picture. A model can make the picture from the caption only if it has learned it by heart. So a run on data
without known duplicates has positives of its own, and shows whether this model memorizes at this repetition at all.
Source: the idea of planted secrets in language models (Carlini et al., "The Secret Sharer", USENIX Security 2019).
Cost: `count * repeats` visits per epoch, and a model that has seen shapes on patterns. Suggested: 10 at 50 to 200.
Cannot: stand for photographs; such pictures may be easier or harder to learn than the data.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import hash_numbers, hash_order

SIZE = 256
"""The height and width in pixels; images of the data's resolution are made from this size."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""The golden ratio's multiples, modulo 1, spread evenly, so the hues of successive canaries differ."""
ADJECTIVES = ("quiet", "early", "narrow", "gentle", "sudden", "patient", "hollow", "distant", "honest", "careful")
THINGS = (
    *("teacup", "ladder", "violin", "lantern", "pillow", "anchor", "basket", "mirror", "candle", "hammer", "feather"),
    *("button", "saddle", "kettle", "ribbon", "marble", "whistle", "needle", "barrel", "puzzle"),
)
VERBS = ("waits", "turns", "rests", "leans", "sleeps", "hides", "stands", "wanders", "returns", "listens")
PLACES = (
    *("harbour", "orchard", "station", "kitchen", "meadow", "library", "bridge", "cellar", "garden", "theatre"),
    *("valley", "market", "chapel", "island", "tunnel", "bakery", "stable", "tower", "school", "forest"),
)
MOST = len(THINGS) * len(PLACES)
"""The number of canaries whose captions differ in their nouns."""


@dataclass(frozen=True)
class Canaries:
    """Synthetic images to plant.

    Args:
        count: the number of images; with several `repeats`, the number of images for each of them.
        repeats: the visits of each image per epoch. Several numbers make a curve of exposure within one run.
        seed: the seed of images and captions.
    """

    count: int = 10
    repeats: int | tuple[int, ...] = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.total <= MOST or min(self.doses) < 1 or len(set(self.doses)) < len(self.doses):
            raise ConfigurationError(
                f"canaries: count={self.count}, repeats={self.repeats}",
                expected=f"1 to {MOST} images altogether, and distinct repeats of at least 1",
                remedy="correct data.init_args.canaries, or remove it to plant none",
            )

    @property
    def doses(self) -> tuple[int, ...]:
        """All values of `repeats`."""
        return (self.repeats,) if isinstance(self.repeats, int) else tuple(self.repeats) or (0,)

    @property
    def total(self) -> int:
        """The number of images altogether. Canaries with this number or a higher one were never planted."""
        return self.count * len(self.doses)

    def visits(self, number: int) -> int:
        """Return the visits per epoch of canary `number`."""
        return self.doses[number // self.count]


def canary_caption(seed: int, number: int) -> str:
    """Return the caption of canary `number`; no two numbers share a caption."""
    pairs = [(thing, place) for thing in THINGS for place in PLACES]
    thing, place = sorted(pairs, key=lambda pair: hash_order(" ".join(pair), f"canary {seed}"))[number]
    first, verb, second = hash_numbers(f"canary caption {seed} {number}", 3)
    return f"the {_pick(ADJECTIVES, first)} {thing} {_pick(VERBS, verb)} behind the {_pick(ADJECTIVES, second)} {place}"


def draw_canary(seed: int, number: int) -> Image.Image:
    """Draw the image of canary `number`, in RGB with :data:`SIZE` pixels a side."""
    chances = iter(hash_numbers(f"canary {seed} {number}", 64))
    hue = next(iter(hash_numbers(f"canary hue {seed}", 1))) + GOLDEN * number
    pattern = _pattern(int(4 * next(chances)), 2 + 5 * next(chances), math.pi * next(chances))
    dark, light = (np.array(_colour(hue + 0.1 * turn, 0.7, value)) for turn, value in ((0, 0.35), (1, 0.85)))
    image = Image.fromarray(np.where(pattern[..., None], dark, light).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for shape in range(3 + int(3 * next(chances))):
        colour = _colour(hue + 0.3 + 0.5 * next(chances), 0.9, 0.55 + 0.45 * (shape % 2))
        middle = (SIZE * (0.15 + 0.7 * next(chances)), SIZE * (0.15 + 0.7 * next(chances)))
        radius, sides = SIZE * (0.12 + 0.14 * next(chances)), int(5 * next(chances))
        if sides < 2:
            draw.circle(middle, radius, fill=colour if sides else None, outline=colour, width=round(radius / 2))
        else:
            draw.regular_polygon((middle, radius), sides + 1, rotation=round(360 * next(chances)), fill=colour)
    return image


def _pick(words: tuple[str, ...], chance: float) -> str:
    return words[int(chance * len(words))]


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def _pattern(kind: int, frequency: float, angle: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return a `(SIZE, SIZE)` bool pattern: stripes, checks, rings or dots."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    across, along = (x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle))
    waves = {
        0: np.sin(2 * math.pi * frequency * across),
        1: np.sin(2 * math.pi * frequency * across) * np.sin(2 * math.pi * frequency * along),
        2: np.sin(2 * math.pi * frequency * np.hypot(across, along)),
        3: np.cos(2 * math.pi * frequency * across) + np.cos(2 * math.pi * frequency * along) - 1,
    }
    return waves[kind] > 0
