"""Nearest-neighbour correlation of a network's features, as it is usual for medical images.

Method: Pearson's correlation of the embeddings of two images by the network in the folder that `--vision` names.
Source: Dar et al., "Unconditional Latent Diffusion Models Memorize Patient Imaging Data" (2024). Their network is
trained by contrast on the data themselves, so that shifts and mirrors are seen; that of the folder is your choice, and
the figures are comparable with theirs in kind only. Of pixels: :mod:`memtrain.evaluation.measures.copying.correlation`.
Cost: one forward an image, then a matrix product. Cannot: tell look-alikes of one kind from copies where the network
was trained to find kinds, which the calibration on held-out pictures shows.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from memtrain.evaluation.measures.copying.vision import Vision


class FeatureCorrelation(Vision):
    """Pearson's correlation of a vision transformer's embeddings.

    Args:
        folder: of the model.
    """

    name = "feature_correlation"

    def describe(self, images: Tensor) -> Tensor:
        """`(n, D)`, without their mean and of unit length."""
        features = super().describe(images)
        return F.normalize(features - features.mean(dim=1, keepdim=True), dim=1)
