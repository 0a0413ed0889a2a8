"""Alignment: is one image an edited version of the other, after registration?

Method: the log odds that two images show one picture, after the one is registered to the other (crop, mirror, shift,
scale, small rotations, any brightness and contrast) and compared block by block
(:mod:`memtrain.families.agreement`). The first image is tried whole, and without a sixteenth at each side, in case of a
frame. Only the sixteen training images nearest by the built-in descriptor are registered. Others count as unlike.
Cost: 1 ms for each registered pair on one core.
Cannot: see copies of less than half of the width, upside-down copies, copies under text, and details of less than a
thirty-second of the side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, pictures
from memtrain.families.agreement import NOTHING, compare
from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.looks import thumbnail
from memtrain.families.registration import SIDE

REGISTERED = 8
"""Largest number of images, of those compared at once, to which each image is registered."""
EDGE = 16
"""Fraction 1 / EDGE of a side is left out at each edge."""
PIXELS = 3 * SIDE * SIDE


class Alignment(CopyMeasure):
    """Log odds that two images show one picture."""

    name = "aligned"
    version = BuiltIn.version
    candidates = 2 * REGISTERED

    def describe(self, images: Tensor) -> Tensor:
        """Return thumbnail pixels and built-in descriptors of the whole image and its inner part, `(n, 7808)`."""
        top, left = (side // EDGE for side in images.shape[-2:])
        inner = images[..., top : images.shape[-2] - top, left : images.shape[-1] - left]
        return torch.cat([_described(images), _described(inner)], dim=1)

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return log odds; pairs that are not registered have about -20, more if the descriptors are more similar."""
        whole, inner = first.chunk(2, dim=1)
        pictures_, _ = second.chunk(2, dim=1)
        return torch.maximum(_scores(whole, pictures_), _scores(inner, pictures_))

    def quick(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine of built-in descriptors, of the whole or of the inner part."""
        whole, inner = first.chunk(2, dim=1)
        known = second.chunk(2, dim=1)[0][:, PIXELS:].T
        return torch.maximum(whole[:, PIXELS:] @ known, inner[:, PIXELS:] @ known)


def _described(images: Tensor) -> Tensor:
    shown = pictures(images)
    small = np.stack([thumbnail(picture) for picture in shown]) if shown else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return torch.cat([torch.from_numpy(small).flatten(1).float(), torch.from_numpy(BuiltIn().describe(shown))], dim=1)


def _scores(first: Tensor, second: Tensor) -> Tensor:
    near = first[:, PIXELS:] @ second[:, PIXELS:].T
    found = NOTHING - 1 + near
    columns = near.topk(min(REGISTERED, near.shape[1]), dim=1).indices
    rows = torch.arange(len(first)).repeat_interleave(columns.shape[1])
    pairs = torch.stack([rows, columns.flatten()], dim=1)
    scores = torch.from_numpy(compare(_pixels(first), _pixels(second), pairs.numpy()))
    found[pairs[:, 0], pairs[:, 1]] = torch.where(scores > NOTHING, scores, found[pairs[:, 0], pairs[:, 1]])
    return found


def _pixels(features: Tensor) -> np.ndarray:
    return features[:, :PIXELS].reshape(-1, SIDE, SIDE, 3).to(torch.uint8).numpy()
