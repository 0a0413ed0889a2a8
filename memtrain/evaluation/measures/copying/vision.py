"""DINO, DINOv2 or CLIP from a local folder: cosine of image embeddings.

Method and source: :mod:`memtrain.families.descriptors.vision_transformer`.
Cost: one forward of a vision transformer per image.
Cannot: tell look-alikes of one kind from copies. CLIP in particular finds images similar that have similar names. The
calibration on held-out pictures shows this.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, CopyWeights, pictures
from memtrain.families.descriptors.vision_transformer import VisionTransformer


class Vision(CopyMeasure):
    """Cosine of a vision transformer's embeddings.

    Args:
        folder: the folder of the model.
    """

    name = "vision"

    def __init__(self, folder: str) -> None:
        self._network = VisionTransformer(folder)
        self.version = self._network.version

    @classmethod
    def reason_missing(cls, weights: CopyWeights) -> str | None:
        """Return the reason if no folder is named."""
        return None if weights.vision else "no model was named (--vision FOLDER)"

    @classmethod
    def made(cls, weights: CopyWeights) -> Self:
        """Make the measure with the named folder."""
        assert weights.vision is not None  # checked by reason_missing
        return cls(weights.vision)

    def describe(self, images: Tensor) -> Tensor:
        """Return embeddings `(n, D)` of unit length."""
        return torch.from_numpy(self._network.describe(pictures(images)))

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine."""
        return first @ second.T
