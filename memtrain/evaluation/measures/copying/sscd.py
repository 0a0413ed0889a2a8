"""SSCD: cosine of a learned copy detector's descriptors, from your own file of weights.

Method and source: :mod:`memtrain.evaluation.measures.copy_descriptors`, in one of its four published conventions.
Cost: one forward of a ResNet-50 an image, 25 to 100 ms on one core.
Cannot: recognise images of 64 pixels as well as photographs. Its published thresholds (0.5, 0.7) are for photographs,
so the threshold is calibrated on the data.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

from torch import Tensor

from memtrain.evaluation.measures.copy_descriptors import convention, describe_images
from memtrain.evaluation.measures.copying.base import CopyMeasure, CopyWeights
from memtrain.families.network_file import load_network


class SSCD(CopyMeasure):
    """Cosine of a copy detector's descriptors.

    Args:
        path: the ONNX or TorchScript file.
        by: the name of the convention.
    """

    name = "sscd"

    def __init__(self, path: str, by: str = "nemo") -> None:
        self._network, self._by = load_network(path), convention(by)
        with Path(path).open("rb") as file:
            self.version = f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]} {by}"

    @classmethod
    def reason_missing(cls, weights: CopyWeights) -> str | None:
        """Return the reason if no file is named."""
        return None if weights.copy_detector else "no weights were named (--copy_detector FILE)"

    @classmethod
    def made(cls, weights: CopyWeights) -> Self:
        """Make the measure with the named file."""
        assert weights.copy_detector is not None  # checked by reason_missing
        return cls(weights.copy_detector, weights.convention)

    def describe(self, images: Tensor) -> Tensor:
        """Return descriptors `(n, D)` of unit length."""
        return describe_images(self._network, images, by=self._by)

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine."""
        return first @ second.T
