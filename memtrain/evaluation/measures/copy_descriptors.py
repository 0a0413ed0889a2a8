"""SSCD: a learned descriptor of copies, in the four conventions of published papers.

Method: cosine similarity of descriptors of a self-supervised copy detector, which survives crops, shifts and colours
that a pixel distance does not. Source: Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection" (CVPR
2022).
Conventions: papers differ in the weights, the preprocessing of images, and the reduction of similarities to one figure
(:data:`CONVENTIONS`). So do not compare figures of different conventions.

- `dcr`: Somepalli et al., "Diffusion Art or Digital Forgery?" (CVPR 2023).
- `wen`: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024).
- `nemo`: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024).
- `membench`: Hong et al., "MemBench" (2024).

Weights: your own file; no file is downloaded (:mod:`memtrain.families.network_file` says which files to trust).
Traps: the medians of NeMo's scripts are torch's medians, the lower of the two middle values. The MAD is not scaled to a
standard deviation.
Cost: one forward pass of a ResNet per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.medians import median_and_mad
from memtrain.families.descriptors.base import IMAGENET, normalised

Descriptor = Callable[[Tensor], Tensor]
"""Function from `(n, 3, H, W)` fp32 to `(n, D)`."""
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Convention:
    """Preprocessing of images in a paper.

    Attributes:
        weights: the name of the SSCD release of the paper.
        size: the new length of the shorter side, or of both sides if `crop` is None.
        crop: the side of the centre crop; None for no crop.
        mean: the subtracted mean of each channel.
        std: the divisor of each channel.
    """

    weights: str
    size: int
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, images: Tensor, *, as_pixels: bool = False) -> Tensor:
        """Convert images `(n, 3, H, W)` uint8 to the network's input, resized like torchvision resizes PIL images.

        Args:
            images: the images, all of one size.
            as_pixels: whether to keep pixels as uint8, for a network that normalises them itself.
        """
        resized = torch.stack([self._resized(image) for image in images])
        return resized if as_pixels else normalised(resized, self.mean, self.std)

    def _resized(self, image: Tensor) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        width, height = picture.size
        if self.crop is None:
            width = height = self.size
        else:
            short = min(width, height)
            width, height = int(self.size * width / short), int(self.size * height / short)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is not None:
            left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
            picture = picture.crop((left, top, left + self.crop, top + self.crop))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


CONVENTIONS = {
    "dcr": Convention("sscd_disc_large", 256, 224, *HALVES),
    "wen": Convention("sscd_disc_large", 256, 224, *HALVES),
    "nemo": Convention("sscd_disc_mixup", 320, None, *IMAGENET),
    "membench": Convention("sscd_disc_large", 288, None, *IMAGENET),
}


def convention(name: str) -> Convention:
    """Return a convention by its name.

    Raises:
        ConfigurationError: if there is no such convention.
    """
    if name not in CONVENTIONS:
        raise ConfigurationError(
            f"There is no SSCD convention {name!r}", expected=", ".join(CONVENTIONS), remedy="choose one of these"
        )
    return CONVENTIONS[name]


def describe_images(descriptor: Descriptor, images: Tensor, *, by: Convention, batch_size: int = 32) -> Tensor:
    """Compute descriptors of unit length.

    Args:
        descriptor: the network from :func:`memtrain.families.network_file.load_network`.
        images: the images, `(..., 3, H, W)` uint8.
        by: the convention.
        batch_size: the number of images per forward pass.

    Returns:
        `(..., D)`.

    Raises:
        DataError: if there are no images, or the network does not return one vector per image.
    """
    flat = images.flatten(0, -4) if images.dim() > 4 else images
    if not len(flat):
        raise DataError(
            "There are no images to describe", expected="at least one image", remedy="sample more prompts or seeds"
        )
    as_pixels = getattr(descriptor, "takes_pixels", False)
    found = [descriptor(by.prepare(part, as_pixels=as_pixels)) for part in flat.split(batch_size)]
    if any(part.dim() != 2 for part in found) or sum(map(len, found)) != len(flat):
        raise DataError(
            f"The descriptor returned {[tuple(part.shape) for part in found][:3]} for {len(flat)} images",
            expected="one vector per image",
            remedy="use a network that ends in its descriptor",
        )
    return F.normalize(torch.cat(found), dim=1).view(*images.shape[:-3], -1)


def reduce_similarity(similarity: Tensor, name: str) -> dict[str, Any]:
    """Reduce similarities to the figures of a paper.

    Args:
        similarity: the similarities `(P, K, R)` of K generations of each of P prompts to R references: the prompt's own
            images, or all training images for `dcr`.
        name: the name of the convention.

    Returns:
        Figures with the paper's names. Figures of `nemo` are medians over prompts, each with its MAD.

    Raises:
        ConfigurationError: if there is no such convention.
        DataError: if there are no similarities.
    """
    convention(name)
    if not similarity.numel():
        raise DataError(
            f"Similarities of {' x '.join(map(str, similarity.shape))} prompts, generations and references",
            expected="at least one of each",
            remedy="pass the images to compare",
        )
    values = similarity.double()
    if name == "dcr":
        best = values.amax(dim=2).flatten()
        return {"mean": float(best.mean()), "percentile_95": float(best.quantile(0.95))}
    if name == "wen":
        return {"mean": float(values.amax(dim=2).mean())}
    if name == "nemo":
        each = values.median(dim=2).values
        return {
            "SSCD_orig": median_and_mad(each.amax(dim=1)),
            "SSCD_orig_median": median_and_mad(each.median(dim=1).values),
        }
    each = values.amax(dim=2)
    return {
        "top_1": float(each.amax(dim=1).mean()),
        "top_3": float(each.topk(min(3, each.shape[1]), dim=1).values.mean()),
        "share_above_0.5": float((each > 0.5).double().mean()),
    }
