"""The cut of an image to its training size: square or aspect-ratio bucket, centered or random, mirrored or not.

An image is resized until it just covers its target, and the surplus is cut off. The cut is centered, or with
`random_crop` at a place that is drawn for each visit. `random_flip` mirrors half of the visits. Draws are a function of
seed, epoch, key and the number of the visit in its epoch. Measurements of samples (profiles, held-out losses) use one
fixed view of each image: centered and not mirrored.
Buckets (Novel AI's "aspect ratio bucketing", 2022, as kohya's scripts and SDXL, arXiv 2307.01952, use it) are sizes of
about the area `resolution`², with sides that are multiples of `step`. An image uses the bucket of the nearest aspect
ratio, and a batch has one size.
Cached latents freeze random cuts, so they are made of `variants` views of each image. The first view is the fixed one.
Cost: only the cache, which has `variants` entries for each image.
Cannot: turn or recolor; the watch takes such images for other pictures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import hash_numbers

Shape = tuple[int, int]
"""The number of rows and columns in pixels."""


PIXELS_PER_LATENT = 8
"""The autoencoders of latent diffusion make one latent of so many pixels, so sides of images are multiples of it."""


def require_multiple(name: str, pixels: int) -> None:
    """Refuse a side that no image of a latent diffusion model has.

    Args:
        name: the name of the setting.
        pixels: the length of the side.

    Raises:
        ConfigurationError: with the nearest valid sides.
    """
    if pixels < 1 or pixels % PIXELS_PER_LATENT:
        below = max(1, pixels // PIXELS_PER_LATENT) * PIXELS_PER_LATENT
        above = below + PIXELS_PER_LATENT
        raise ConfigurationError(
            f"{name}={pixels}",
            expected=f"a multiple of {PIXELS_PER_LATENT}, such as {below} or {above}: an autoencoder makes one latent "
            f"of {PIXELS_PER_LATENT} x {PIXELS_PER_LATENT} pixels",
            remedy=f"set {name} to {below if pixels - below <= above - pixels else above}",
        )


@dataclass(frozen=True)
class Augment:
    """The random changes of each visit.

    Args:
        random_crop: whether an image with another aspect ratio than its target is cut at a random place.
        random_flip: whether half of the visits are mirrored.
        variants: the number of views of each image when latents are cached, including the fixed view; 2 are enough for
            flips alone.
    """

    random_crop: bool = False
    random_flip: bool = False
    variants: int = 0

    def __post_init__(self) -> None:
        if self.variants < 0 or self.variants == 1:
            raise ConfigurationError(
                f"variants={self.variants}",
                expected="0, or 2 and more",
                remedy="correct --data.init_args.augment.variants",
            )

    @property
    def random(self) -> bool:
        """Whether visits of one image differ."""
        return self.random_crop or self.random_flip


@dataclass(frozen=True)
class Buckets:
    """Aspect-ratio buckets.

    Args:
        enabled: whether to use buckets; false means squares of `resolution`.
        step: the number of pixels of which all sides are multiples.
        min_side: the shortest side; by default half of `resolution`.
        max_side: the longest side; by default twice `resolution`.
    """

    enabled: bool = True
    step: int = 64
    min_side: int | None = None
    max_side: int | None = None

    def shapes(self, resolution: int) -> list[Shape]:
        """Return all sizes of at most `resolution`² pixels, including the square, in the order of their aspect ratios.

        Raises:
            ConfigurationError: if there is no such size.
        """
        step, area = self.step, resolution * resolution
        require_multiple("buckets.step", step)
        shortest = math.ceil((resolution // 2 if self.min_side is None else self.min_side) / max(step, 1)) * step
        longest = 2 * resolution if self.max_side is None else self.max_side
        if step < 1 or not 0 < shortest <= resolution // step * step <= longest:
            raise ConfigurationError(
                f"buckets with step={step}, sides from {self.min_side} to {self.max_side} and resolution={resolution}",
                expected="a multiple of step from min_side to resolution, and max_side of at least resolution",
                remedy="lower step or min_side, or raise max_side or resolution",
            )
        found = {(resolution // step * step,) * 2}
        for side in range(shortest, longest + 1, step):
            other = min(area // side, longest) // step * step
            if other >= shortest:
                found |= {(side, other), (other, side)}
        return sorted(found, key=_ratio)


@dataclass(frozen=True)
class Frame:
    """The cut of one image.

    Attributes:
        shape: the shape of the result.
        across: the place of the horizontal cut, from 0 (all of it on the right) to 1 (all of it on the left).
        along: the place of the vertical cut, from 0 (all of it at the bottom) to 1 (all of it at the top).
        flipped: whether the image is mirrored before the cut.
    """

    shape: Shape
    across: float = 0.5
    along: float = 0.5
    flipped: bool = False

    def top_left(self, size: tuple[int, int]) -> Shape:
        """Return the rows and columns of the resized image that are cut off at the top and on the left.

        Args:
            size: the width and height of the image.
        """
        (width, height), (rows, columns) = size, self.shape
        scale = max(rows / height, columns / width)
        return round((height * scale - rows) * self.along), round((width * scale - columns) * self.across)


@dataclass(frozen=True)
class Framing:
    """The rule for cutting the images of a data set.

    Attributes:
        shapes: all shapes.
        augment: the random changes.
        seed: the seed of all draws.
        sized: whether batches describe the cut of images (`original_size`, `crop_top_left`, `target_size`).
    """

    shapes: tuple[Shape, ...]
    augment: Augment = Augment()
    seed: int = 0
    sized: bool = False

    @classmethod
    def of(cls, resolution: int, *, buckets: Buckets | None, augment: Augment | None, seed: int) -> Framing:
        """Make the rule from a data module's settings."""
        bucketed = buckets is not None and buckets.enabled
        shapes = buckets.shapes(resolution) if buckets is not None and bucketed else [(resolution, resolution)]
        augment = augment or Augment()
        return cls(tuple(shapes), augment, seed, sized=bucketed or augment.random)

    def shape_of(self, size: tuple[int, int]) -> Shape:
        """Return the shape of the nearest aspect ratio.

        Args:
            size: the width and height of the image.
        """
        ratio = math.log(size[0] / size[1])
        return min(self.shapes, key=lambda shape: (abs(_ratio(shape) - ratio), shape))

    def frame(self, shape: Shape, key: str, visit: tuple[int, int] | None) -> Frame:
        """Return the cut of a sample in a visit.

        Args:
            shape: the shape of the sample.
            key: the key of the sample.
            visit: the epoch, and the number of the sample's visit in it; None for the fixed view.
        """
        if visit is None or not self.augment.random:
            return Frame(shape)
        across, along, turn = hash_numbers(f"view {self.seed} {visit[0]} {visit[1]} {key}", 3)
        return self._frame(shape, across, along, flipped=turn < 0.5)

    def variant_of(self, key: str, visit: tuple[int, int] | None) -> int:
        """Return the number of the variant that a visit shows; arguments as for :meth:`frame`."""
        if visit is None or self.variants == 1:
            return 0
        (draw,) = hash_numbers(f"variant {self.seed} {visit[0]} {visit[1]} {key}", 1)
        return int(draw * self.variants)

    def variant(self, shape: Shape, key: str, number: int) -> Frame:
        """Return the cut of a variant. Number 0 is the fixed view. Odd numbers are mirrored with `random_flip`."""
        if number == 0:
            return Frame(shape)
        across, along = hash_numbers(f"variant {self.seed} {number} of {key}", 2)
        return self._frame(shape, across, along, flipped=number % 2 == 1)

    def _frame(self, shape: Shape, across: float, along: float, *, flipped: bool) -> Frame:
        crop = self.augment.random_crop
        flipped = flipped and self.augment.random_flip
        return Frame(shape, across if crop else 0.5, along if crop else 0.5, flipped)

    @property
    def variants(self) -> int:
        """The number of views of each image in a cache."""
        return max(1, self.augment.variants) if self.augment.random else 1


def without_small(shapes: Iterable[Shape], least: int) -> tuple[Shape, ...]:
    """Remove shapes with fewer than `least` visits one by one. Their images move to the nearest remaining shape.

    Args:
        shapes: the shapes of all visits.
        least: the number of visits that fill a batch of all processes.
    """
    count = Counter(shapes)
    while len(count) > 1 and min(count.values()) < least:
        smallest = min(count, key=lambda shape: (count[shape], shape))
        visits = count.pop(smallest)
        count[min(count, key=lambda shape: (abs(_ratio(shape) - _ratio(smallest)), shape))] += visits
    return tuple(sorted(count, key=_ratio))


def rows_by_shape(shapes: Sequence[Shape]) -> dict[Shape, list[int]]:
    """Return the places of each shape."""
    found: dict[Shape, list[int]] = {}
    for row, shape in enumerate(shapes):
        found.setdefault(shape, []).append(row)
    return found


def _ratio(shape: Shape) -> float:
    """Return the logarithm of width by height."""
    return math.log(shape[1] / shape[0])
