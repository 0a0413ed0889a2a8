"""Networks of `metrics`, and their images, which can have any sizes and are read from files one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.copy_descriptors import convention, describe_images
from memtrain.evaluation.measures.nemo_metrics import load_inception
from memtrain.evaluation.measures.weights import Weights
from memtrain.families.network_file import load_network
from memtrain.files.pictures import PictureError, read_image


class Networks:
    """The networks with a weight file.

    Args:
        weights: the local files.
    """

    def __init__(self, weights: Weights) -> None:
        self.by = convention(weights.sscd_convention)
        self.sscd = None if weights.sscd is None else load_network(weights.sscd)
        self.clip = None if weights.clip is None else ClipFeatures(weights.clip)
        self.inception = None if weights.inception is None else load_inception(weights.inception)

    def copies(self, images: Sequence[Tensor]) -> Tensor | None:
        """Compute SSCD descriptors `(n, D)` of images of any sizes; None without the network or images."""
        if self.sscd is None or not images:
            return None
        return torch.cat([describe_images(self.sscd, image[None], by=self.by) for image in images])

    def seen(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute features for distances, by name of the distance."""
        found = {}
        if self.inception is not None and images:
            found["FID"] = torch.cat([self.inception(image[None]) for image in images])
        if self.clip is not None and images:
            found["CLIP_FID"] = torch.cat([self.clip.images(image[None], unit=False) for image in images])
        return found


def readable(files: Sequence[Path], unreadable: list[str]) -> list[Tensor]:
    """Read the images of files, and note files that are no images, such as the page of a dead link."""
    found = []
    for file in files:
        try:
            found.append(load_image(file))
        except DataError:
            unreadable.append(file.name)
    return found


def load_image(path: Path) -> Tensor:
    """Read an image as `(3, H, W)` uint8.

    Raises:
        DataError: if the file is no image.
    """
    try:
        pixels = np.array(read_image(path))
    except (OSError, PictureError) as error:
        raise DataError(
            f"{path} is no image: {error}", expected="a PNG, JPEG or WebP file", remedy="sample it again, or remove it"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
