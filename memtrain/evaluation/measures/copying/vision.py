"""DINO, DINOv2 or CLIP from a local folder: cosine of image embeddings.

What and source: :mod:`memtrain.families.descriptors.vision_transformer`.
Cost: one forward of a vision transformer an image. Cannot: tell look-alikes of one kind from copies; CLIP in
particular is alike for what is called alike, which the calibration on held-out pictures shows.
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
        folder: of the model.
    """

    name = "vision"

    def __init__(self, folder: str) -> None:
        self._network = VisionTransformer(folder)
        self.version = self._network.version

    @classmethod
    def reason_missing(cls, weights: CopyWeights) -> str | None:
        """It needs a folder."""
        return None if weights.vision else "no model was named (--vision FOLDER)"

    @classmethod
    def made(cls, weights: CopyWeights) -> Self:
        """With that folder."""
        assert weights.vision is not None  # reason_missing says so
        return cls(weights.vision)

    def describe(self, images: Tensor) -> Tensor:
        """`(n, D)` of unit length."""
        return torch.from_numpy(self._network.describe(pictures(images)))

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Cosine."""
        return first @ second.T
