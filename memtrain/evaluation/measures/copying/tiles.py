"""Tiled distance: the pixel distance of two images in the tile where they differ most.

Method: images of 64 pixels are cut into 4 x 4 tiles. Their distance is the largest root mean square difference of a
tile, and the similarity is its negative. So an equal background does not make a copy.
Source: Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023), section 4: tiles of 128
in images of 512 pixels.
Cost: sixteen small matrix products. Cannot: see any shift, crop or mirror.
"""

from __future__ import annotations

from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, scaled

SIDE, TILES = 64, 4


class TiledDistance(CopyMeasure):
    """Negative of the largest distance of a tile."""

    name = "tiles"
    version = "1"

    def describe(self, images: Tensor) -> Tensor:
        """Return pixels by tile, `(n, 16, 768)`."""
        tile = SIDE // TILES
        cut = scaled(images, SIDE).unfold(2, tile, tile).unfold(3, tile, tile)
        return cut.permute(0, 2, 3, 1, 4, 5).reshape(len(images), TILES * TILES, -1)

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the similarity from -1 to 0; equal images have 0."""
        a, b = first.transpose(0, 1).double(), second.transpose(0, 1).double()
        squared = a.square().sum(dim=2)[:, :, None] + b.square().sum(dim=2)[:, None] - 2 * a @ b.transpose(1, 2)
        return -(squared.clamp(min=0) / first.shape[2]).sqrt().amax(dim=0).float()
