"""Nearest-neighbour correlation: Pearson's correlation of grey values, as usual for medical images.

Method: the correlation of the luminance of two images at 64 pixels. Source: Dar et al., "Unconditional Latent Diffusion
Models Memorize Patient Imaging Data" (2024). They correlate the embeddings of a network that was trained by contrast on
the data (its weights depend on the data and are not available). They take the nearest training image of each
generation, and set the threshold from the correlations of training with validation images. The calibration here uses
held-out pictures in the same way.
Cost: one matrix product. Cannot: see shifts, crops and mirrors, which their network is trained to see.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, scaled
from memtrain.families.registration import luminance

SIDE = 64


class Correlation(CopyMeasure):
    """Pearson's correlation of luminance."""

    name = "correlation"
    version = "1"

    def describe(self, images: Tensor) -> Tensor:
        """Return grey values `(n, 4096)` without their mean, of unit length."""
        grey = luminance(scaled(images, SIDE)).flatten(1)
        return F.normalize(grey - grey.mean(dim=1, keepdim=True), dim=1)

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the correlation, from -1 to 1."""
        return first @ second.T
