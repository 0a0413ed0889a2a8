"""Tile distance: a memorized prompt makes the same image again and again.

What: the distance of two images is the largest, over a grid of 4 by 4 tiles, of √(mean (a − b)²) for pixel values in
[0, 1]: the largest, so that two images with the same plain background are not alike. The score of a prompt is the
smallest distance d for which `clique` of its images all lie within d of each other, that of an image the same for
cliques that it belongs to. So "a clique at threshold t exists" is "score ≤ t", and no threshold has to be chosen.
Source: the black-box extraction of Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security
2023), which samples 500 images per prompt and asks for cliques of ten. These are cliques in truth: each image is near
every other. A re-implementation in circulation (MemControl) takes connected components of the graph instead, which
chain images together that are far apart, cliques of three, and sums where this takes means.
Direction: lower means memorized.
Cost: all denoiser calls and a decoding. The images themselves are kept until a prompt is scored (0.8 MB each at 512
pixels, as bytes).
Suggested values: as many images as can be afforded; cliques of three for few, ten for hundreds.
Cannot: detect prompts that give a memorized image only now and then, or part of one; and a model that makes nearly the
same image of a prompt without having seen it looks memorized.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError
from memtrain.functional.pixel_distance import centred_pixels, squared_distances, unit_distance

TILES = 4
"""Tiles along each side."""


class TileL2(Detector):
    """Smallest distance within which a clique of a prompt's images lies.

    Args:
        clique: number of images that have to be alike.
    """

    higher_means_memorized: ClassVar[bool] = False
    cost: ClassVar[str] = "sampling to the end and a decoding, for every image"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, clique: int = 3) -> None:
        if clique < 2:
            raise ConfigurationError(
                f"TileL2: clique={clique} compares nothing", expected="at least 2", remedy="change clique"
            )
        self.clique = clique

    @property
    def name(self) -> str:
        """`tile_l2_3` for cliques of three."""
        return f"tile_l2_{self.clique}"

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Nothing."""
        return None

    def read_images(self, images: Tensor) -> Tensor | None:
        """The images, `(B, 3, H, W)` uint8."""
        return images

    def score_images(self, readings: Tensor) -> Tensor:
        """`(P, K)` from readings `(P, K, 1, 3, H, W)`.

        Raises:
            ConfigurationError: with fewer images than a clique has.
        """
        if readings.shape[1] < self.clique:
            raise ConfigurationError(
                f"TileL2 looks for {self.clique} images alike among {readings.shape[1]}",
                expected="at least as many images per prompt as a clique has",
                remedy="sample more images per prompt, or lower clique",
            )
        return torch.stack([clique_distance(tile_distance(images), self.clique) for images in readings[:, :, 0]])

    def score(self, readings: Tensor) -> Tensor:
        """`(P,)`: the smallest of the images."""
        return self.score_images(readings).amin(dim=1)


def tile_distance(images: Tensor) -> Tensor:
    """Largest root mean squared difference over tiles, of all pairs.

    Args:
        images: `(K, 3, H, W)` uint8, at least 4 pixels a side.

    Returns:
        `(K, K)` fp32, from 0 to 1.
    """
    largest = torch.zeros(len(images), len(images), dtype=torch.float64)
    for rows in images.tensor_split(TILES, dim=2):
        for tile in rows.tensor_split(TILES, dim=3):
            values = centred_pixels(tile)
            # Exact until the division, so that the matrix is symmetric and equal pairs are equally far apart.
            largest = torch.maximum(largest, squared_distances(values, values) / values.shape[1])
    return unit_distance(largest).float()


def clique_distance(distances: Tensor, size: int) -> Tensor:
    """For each image the smallest d such that it belongs to a clique of `size` images at most d apart, two by two.

    Args:
        distances: `(K, K)`, symmetric.
        size: from 2 to K.

    Returns:
        `(K,)`.
    """
    levels = distances[*torch.triu_indices(len(distances), len(distances), offset=1)].unique().tolist()
    values = distances.tolist()

    def smallest(image: int) -> float:
        def belongs(level: float) -> bool:
            near = [other for other in range(len(values)) if other != image and values[image][other] <= level]
            return has_clique(values, near, size - 1, level=level)

        return levels[bisect_left(levels, True, key=belongs)]

    return torch.tensor([smallest(image) for image in range(len(values))])


def has_clique(distances: Sequence[Sequence[float]], among: Sequence[int], size: int, *, level: float) -> bool:
    """Whether `size` of the images `among` are all at most `level` apart, two by two.

    Args:
        distances: `(K, K)`, symmetric.
        among: indices of images.
        size: of the clique.
        level: largest distance.
    """
    if size == 0:
        return True
    for position, image in enumerate(among):
        if len(among) - position < size:
            return False
        near = [other for other in among[position + 1 :] if distances[image][other] <= level]
        if has_clique(distances, near, size - 1, level=level):
            return True
    return False
