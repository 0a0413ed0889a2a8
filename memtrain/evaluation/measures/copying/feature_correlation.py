"""Nearest-neighbour correlation of a network's features, as usual for medical images.

Method: Pearson's correlation of the embeddings of two images by the network in the folder that `--vision` names.
Source: Dar et al., "Unconditional Latent Diffusion Models Memorize Patient Imaging Data" (2024). Their network is
trained by contrast on the data themselves, so it sees shifts and mirrors. You choose the network of the folder, so the
figures are comparable with theirs in kind only. :mod:`memtrain.evaluation.measures.copying.correlation` does the same
with pixels.
Cost: one forward per image, then a matrix product.
Cannot: tell look-alikes of one kind from copies if the network was trained to find kinds. The calibration on held-out
pictures shows this.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from memtrain.evaluation.measures.copying.vision import Vision


class FeatureCorrelation(Vision):
    """Pearson's correlation of a vision transformer's embeddings.

    Args:
        folder: the folder of the model.
    """

    name = "feature_correlation"

    def describe(self, images: Tensor) -> Tensor:
        """Return embeddings `(n, D)` without their mean, of unit length."""
        features = super().describe(images)
        return F.normalize(features - features.mean(dim=1, keepdim=True), dim=1)
