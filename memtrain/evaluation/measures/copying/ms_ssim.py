"""Multi-scale structural similarity (MS-SSIM).

Method: structure, contrast and luminance of two images at 64, 32 and 16 pixels, in 11 x 11 windows. Source: Wang,
Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (Asilomar 2003), by torchmetrics;
the three scales of equal weight are those of Hintersdorf et al., "Finding NeMo" (NeurIPS 2024).
Cost: 3 ms per pair, so it is computed only for the images nearest in pixels. The others count as unlike.
Cannot: see shifts, crops and mirrors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from memtrain.evaluation.measures.copying.base import CopyMeasure, scaled

SIDE, BETAS = 64, (1 / 3, 1 / 3, 1 / 3)
NEAREST, PAIRS = 4, 64
"""Largest number of images with which each image is compared, and number of pairs at once."""


class MultiScaleSSIM(CopyMeasure):
    """MS-SSIM on three scales."""

    name = "ms_ssim"
    candidates = NEAREST

    def describe(self, images: Tensor) -> Tensor:
        """Return pixels `(n, 3, 64, 64)` from 0 to 1."""
        return scaled(images, SIDE)

    def quick(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the negative root mean square difference of pixels."""
        return -torch.cdist(first.flatten(1), second.flatten(1)) / first[0].numel() ** 0.5

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return MS-SSIM from 0 to 1; pairs that are not compared have -1 or less, by their pixel distance."""
        apart = -self.quick(first, second)
        found = -1 - apart
        columns = apart.topk(min(NEAREST, len(second)), dim=1, largest=False).indices
        rows = torch.arange(len(first)).repeat_interleave(columns.shape[1])
        for some in torch.arange(len(rows)).split(PAIRS):
            left, right = rows[some], columns.flatten()[some]
            found[left, right] = multiscale_structural_similarity_index_measure(
                first[left], second[right], betas=BETAS, data_range=1.0, normalize="relu", reduction="none"
            ).view(-1)
        return found
