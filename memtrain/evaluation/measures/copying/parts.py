"""Parts: the share of a picture that comes back anywhere in a generation.

Method: the picture, at 64 pixels, is cut into 7 x 7 overlapping windows of 16 pixels. Each window is searched in the
whole generation, at every fourth pixel, by the correlation of luminance and colour. The similarity is the mean of the
best correlations. Plain windows do not count, and windows with more contrast count more. So the measure finds a figure
that was cut out, moved, or put on another ground.
Source: ours; the published metrics of partial copies need a segmentation network (Di et al., arXiv 2508.12148).
Cost: 8 million multiplications per pair, 1 ms on one core.
Cannot: see mirrored, rotated or scaled parts. It is not symmetric: it searches a picture in a generation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, scaled

SIDE, WINDOW, STEP, FINE = 64, 16, 8, 4
COARSE = 2
"""Side of the squares of pixels that are averaged before the comparison."""
SHOWN = 1e-3
"""Variance below which a window counts as plain, for pixels from 0 to 1."""


class Parts(CopyMeasure):
    """Mean best correlation of a picture's windows with the generation's."""

    name = "parts"

    def describe(self, images: Tensor) -> Tensor:
        """Return pixels `(n, 3, 32, 32)` from 0 to 1."""
        return F.avg_pool2d(scaled(images, SIDE), COARSE)

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the similarity of generations `first` and pictures `second`, from -1 to 1."""
        windows, shown = _windows(second, STEP)
        weight = torch.where(shown > SHOWN, shown.sqrt(), 0.0)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
        found = torch.empty(len(first), len(second))
        flat = windows.flatten(0, 1).T.contiguous()
        for row, image in enumerate(first):
            places, _ = _windows(image[None], FINE)
            best = (places[0] @ flat).amax(dim=0).view(len(second), -1)
            found[row] = (best * weight).sum(dim=1)
        return found


def _windows(images: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return windows without their mean, of unit length, `(n, w, 192)`, and their variances, `(n, w)`."""
    size = WINDOW // COARSE
    cut = F.unfold(images, size, stride=step // COARSE).transpose(1, 2)
    channels = cut.unflatten(2, (3, -1))
    free = (channels - channels.mean(dim=3, keepdim=True)).flatten(2)
    return F.normalize(free, dim=2, eps=1e-4), free.square().mean(dim=2)
