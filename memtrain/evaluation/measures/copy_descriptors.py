"""SSCD: a learned descriptor of copies, in the four conventions under which papers report it.

Method: cosine similarity of descriptors of a self-supervised copy detector, which survives crops, shifts and colours
that a pixel distance does not. Source: Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection" (CVPR
2022).
Conventions: papers differ in the weights, in what is done to an image before, and in how similarities become one figure
(:data:`CONVENTIONS`), so figures under different names must not be compared.

- `dcr`: Somepalli et al., "Diffusion Art or Digital Forgery?" (CVPR 2023).
- `wen`: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024).
- `nemo`: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024).
- `membench`: Hong et al., "MemBench" (2024).

Weights: a file of your own, none is downloaded (:mod:`memtrain.families.network_file` says which to trust).
Traps: the medians of NeMo's scripts are torch's, the lower of the two middle values; MAD is not scaled to a standard
deviation.
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
"""From `(n, 3, H, W)` fp32 to `(n, D)`."""
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Convention:
    """What a paper does to images before the network.

    Attributes:
        weights: name of the SSCD release that the paper used.
        size: the shorter side is resized to it, or with `crop` None both sides are, whatever the shape.
        crop: side of the centre crop.
        mean: subtracted, per channel.
        std: divided by, per channel.
    """

    weights: str
    size: int
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, images: Tensor, *, as_pixels: bool = False) -> Tensor:
        """`(n, 3, H, W)` uint8 to the network's input, resized as torchvision does with PIL images.

        Args:
            images: of one size.
            as_pixels: leave pixels as uint8, for a network that normalises them itself.
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
    """The convention of that name.

    Raises:
        ConfigurationError: if there is none.
    """
    if name not in CONVENTIONS:
        raise ConfigurationError(f"SSCD convention {name!r}", expected=", ".join(CONVENTIONS), remedy="choose one")
    return CONVENTIONS[name]


def describe_images(descriptor: Descriptor, images: Tensor, *, by: Convention, batch_size: int = 32) -> Tensor:
    """Descriptors of unit length.

    Args:
        descriptor: from :func:`memtrain.families.network_file.load_network`.
        images: `(..., 3, H, W)` uint8.
        by: the convention.
        batch_size: images per forward pass.

    Returns:
        `(..., D)`.

    Raises:
        DataError: if there is no image, or the network does not answer with one vector per image.
    """
    flat = images.flatten(0, -4) if images.dim() > 4 else images
    if not len(flat):
        raise DataError("There are no images to describe", expected="at least one", remedy="give more prompts or seeds")
    as_pixels = getattr(descriptor, "takes_pixels", False)
    found = [descriptor(by.prepare(part, as_pixels=as_pixels)) for part in flat.split(batch_size)]
    if any(part.dim() != 2 for part in found) or sum(map(len, found)) != len(flat):
        raise DataError(
            f"The descriptor answered {len(flat)} images with {[tuple(part.shape) for part in found][:3]}",
            expected="one vector per image",
            remedy="use a network that ends in its descriptor",
        )
    return F.normalize(torch.cat(found), dim=1).view(*images.shape[:-3], -1)


def reduce_similarity(similarity: Tensor, name: str) -> dict[str, Any]:
    """The figures that a paper makes of similarities.

    Args:
        similarity: `(P, K, R)` of K generations of each of P prompts with R references: the prompt's own images, or all
            training images for `dcr`.
        name: of the convention.

    Returns:
        Figures under the paper's names. Those of `nemo` are medians over prompts, each with its MAD.

    Raises:
        ConfigurationError: if there is no such convention.
        DataError: if there are no similarities.
    """
    convention(name)
    if not similarity.numel():
        raise DataError(
            f"Similarities of {' x '.join(map(str, similarity.shape))} prompts, generations and references",
            expected="at least one of each",
            remedy="give the images that are to be compared",
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
