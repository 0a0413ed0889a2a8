"""Tile distance: a memorized prompt makes the same image again and again.

Method: the distance of two images is the largest value of √(mean (a − b)²) over a grid of 4 by 4 tiles, for pixel
values in [0, 1]. The largest value makes sure that two images with the same plain background are not alike. The score
of a prompt is the smallest distance d for which `clique` of its images all lie within d of each other. The score of an
image is the same for cliques with this image. So "a clique at threshold t exists" means "score ≤ t", without a choice
of t.
Source: the black-box extraction of Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security
2023), which samples 500 images per prompt and looks for cliques of ten. In a clique each image is near every other. A
known re-implementation (MemControl) takes connected components of the graph instead, which can chain distant images
together, with sizes of three, and sums in place of means.
Direction: lower means memorized.
Cost: all denoiser calls and a decoding. The images stay in memory until a prompt is scored (0.8 MB each at 512 pixels,
as bytes).
Suggested values: as many images as you can afford; cliques of three for few images, ten for hundreds.
Cannot: detect prompts that give a memorized image only now and then, or only a part of one. A prompt also looks
memorized if the model makes nearly the same image each time without having seen it.
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
"""Number of tiles along each side."""


class TileL2(Detector):
    """Smallest distance within which a clique of a prompt's images lies.

    Args:
        clique: the number of images that have to be alike.
    """

    higher_means_memorized: ClassVar[bool] = False
    cost: ClassVar[str] = "sampling to the end and a decoding, for every image"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, clique: int = 3) -> None:
        if clique < 2:
            raise ConfigurationError(
                f"TileL2: clique={clique} compares no images", expected="at least 2", remedy="change clique"
            )
        self.clique = clique

    @property
    def name(self) -> str:
        """`tile_l2_3` for cliques of three."""
        return f"tile_l2_{self.clique}"

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Keep no reading of denoiser calls."""
        return None

    def read_images(self, images: Tensor) -> Tensor | None:
        """Return the images, `(B, 3, H, W)` uint8."""
        return images

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, 1, 3, H, W)`.

        Raises:
            ConfigurationError: if there are fewer images than a clique has.
        """
        if readings.shape[1] < self.clique:
            raise ConfigurationError(
                f"TileL2 looks for {self.clique} images alike among {readings.shape[1]}",
                expected="at least as many images per prompt as a clique has",
                remedy="sample more images per prompt (--images_per_prompt), or lower clique",
            )
        return torch.stack([clique_distance(tile_distance(images), self.clique) for images in readings[:, :, 0]])

    def score(self, readings: Tensor) -> Tensor:
        """Return the smallest score of the images, `(P,)`."""
        return self.score_images(readings).amin(dim=1)


def tile_distance(images: Tensor) -> Tensor:
    """Compute the largest root mean squared difference over tiles for all pairs.

    Args:
        images: the images, `(K, 3, H, W)` uint8, with at least 4 pixels per side.

    Returns:
        `(K, K)` fp32, from 0 to 1.
    """
    largest = torch.zeros(len(images), len(images), dtype=torch.float64)
    for rows in images.tensor_split(TILES, dim=2):
        for tile in rows.tensor_split(TILES, dim=3):
            values = centred_pixels(tile)
            # The sums are exact until the division, so the matrix is symmetric and equal pairs have equal distances.
            largest = torch.maximum(largest, squared_distances(values, values) / values.shape[1])
    return unit_distance(largest).float()


def clique_distance(distances: Tensor, size: int) -> Tensor:
    """Find for each image the smallest d for which it belongs to a clique of `size` images with pairs at most d apart.

    Args:
        distances: the symmetric distances, `(K, K)`.
        size: the size of the clique, from 2 to K.

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
    """Whether `among` holds `size` images with all pairs at most `level` apart.

    Args:
        distances: the symmetric distances, `(K, K)`.
        among: the indices of the images.
        size: the size of the clique.
        level: the largest distance of a pair.
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
