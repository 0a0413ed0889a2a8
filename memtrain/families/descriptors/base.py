"""The base class of descriptors: a vector of unit length for each image, similar for copies and dissimilar otherwise.

A descriptor only proposes pairs. The pixels decide whether two images are one picture
(:mod:`memtrain.families.agreement`). So a descriptor must place a copy among its picture's nearest neighbors, but not
above a threshold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from memtrain.errors import DataError

BATCH = 32
"""The number of images that are described at a time."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The mean and standard deviation of ImageNet's channels, from 0 to 1."""


class Descriptor(ABC):
    """Describes images.

    Attributes:
        name: the name in reports.
        version: a version that changes whenever vectors do, so that vectors kept on disk are not mixed.
    """

    name: str
    version: str

    @abstractmethod
    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Compute vectors of unit length.

        Args:
            images: n images of any size; modes other than RGB are converted.

        Returns:
            The vectors, `(n, D)`; a row of zeros for an image that shows nothing.

        Raises:
            DataError: if a network does not return one vector of finite numbers for each image.
        """


def stacked(
    images: Sequence[Image.Image], *, side: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Tensor:
    """Scale images of any shape to a square, `(n, 3, side, side)` uint8."""
    scaled = [image.convert("RGB").resize((side, side), resample, reducing_gap=2.0) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 pixels to 0 to 1, subtract a mean and divide by a deviation, by channel."""
    return (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def described(network: Callable[[Sequence[Image.Image]], Tensor], images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Describe images with a network, in batches, at unit length.

    Args:
        network: the function from images to `(n, D)`.
        images: any number of images.

    Returns:
        The vectors, `(n, D)`; `(0, 0)` if there are no images.

    Raises:
        DataError: if the network does not return one vector of finite numbers for each image.
    """
    found = []
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        vectors = network(some).float().cpu()
        if vectors.dim() != 2 or len(vectors) != len(some) or not vectors.isfinite().all():
            raise DataError(
                f"The descriptor returned {tuple(vectors.shape)} for {len(some)} images, with "
                f"{int(vectors.isfinite().sum())} of {vectors.numel()} numbers finite",
                expected="one vector of finite numbers per image",
                remedy="use a network that ends in its descriptor",
            )
        found.append(F.normalize(vectors, dim=1))
    return torch.cat(found).numpy() if found else np.zeros((0, 0), np.float32)
