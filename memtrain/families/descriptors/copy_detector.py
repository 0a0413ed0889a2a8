"""A copy detector from a file of your own: SSCD, or another network that ends in its descriptor.

Images are scaled to a square, normalized as for ImageNet, and described by the network. An ONNX file with uint8
input gets pixels without normalization. Source: Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection"
(CVPR 2022). Weights: TorchScript or ONNX, none is downloaded (:mod:`memtrain.families.network_file` explains which to
trust). Cost: one forward of a ResNet-50, 25 ms on one core at 224 pixels. Suggested: `size` 288 for photographs, as its
authors use it; 224 for small images. Cannot: recognize a 64-pixel image by its JPEG, because it then looks at enlarged
blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.families.descriptors.base import IMAGENET, Descriptor, described, normalised, stacked
from memtrain.families.network_file import load_network


class CopyDetector(Descriptor):
    """Descriptors of a network from a file.

    Args:
        path: the path of a TorchScript or ONNX file.
        size: the height and width of the network's input in pixels.
        device: the device of a TorchScript network.

    Raises:
        ConfigurationError: if the file is not a network, or if `size` is below 1.
    """

    name = "copy detector"

    def __init__(self, path: str, size: int = 224, device: str = "cpu") -> None:
        if size < 1:
            raise ConfigurationError(f"size is {size}", expected="at least 1 pixel", remedy="set size to 224")
        self._network = load_network(path, device=device)
        self._size = size
        with Path(path).open("rb") as file:
            self.version = f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}-{size}"

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Compute vectors of unit length; see :class:`memtrain.families.descriptors.base.Descriptor`."""
        return described(self._forward, images)

    @torch.no_grad()
    def _forward(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = stacked(images, side=self._size)
        return self._network(pixels if self._network.takes_pixels else normalised(pixels, *IMAGENET))
