"""The built-in descriptor as a measure of copying, without weights.

Method: cosine of gradients, layout, colour and spectrum (:mod:`memtrain.families.descriptors.builtin`), the same for an
image and its mirror image. Cost: 1 ms an image, then a matrix product.
Cannot: place a copy behind a thick frame near its picture, nor tell look-alikes of one layout (flags) from copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, pictures
from memtrain.families.descriptors.builtin import BuiltIn


class BuiltInDescriptor(CopyMeasure):
    """Cosine of built-in descriptors."""

    name = "builtin"
    version = BuiltIn.version

    def describe(self, images: Tensor) -> Tensor:
        """Return descriptors `(n, 832)` of unit length."""
        return torch.from_numpy(BuiltIn().describe(pictures(images)))

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine."""
        return first @ second.T
