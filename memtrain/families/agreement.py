"""The agreement of two thumbnails: a score that says whether both show one picture.

Thumbnail b is registered to thumbnail a (:mod:`memtrain.families.registration`). Both are then compared where they
cover each other. Luminance is compared independent of brightness and contrast, and color independent of saturation. A
gray copy has no color and is judged by its luminance alone. Two flags of one layout agree nearly everywhere, and only
the *worst* part of the picture tells them apart. So the worst of 49 overlapping blocks counts more than the mean. A
logistic function combines the parts. Its constants were fitted on pairs of the emoji (copies with the edits of
`benchmarks/near_duplicates.py` against their nearest look-alikes) and judged on the clip art.
Source: memtrain. Cost: that of the registration.
Cannot: recognize a copy with text or a frame laid over it, unless it is small. The score does not tell two pictures
apart that differ in details of less than a thirty-second of the side. It says nothing of pictures that show nothing
(one flat color).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.engines.base import Engine, LocalEngine
from memtrain.errors import DataError
from memtrain.families.chosen_rows import Rows
from memtrain.families.registration import (
    COARSE,
    KEPT,
    SIDE,
    Placement,
    coarse_placements,
    luminance,
    refine,
    scaled_spectra,
    spectra,
)
from memtrain.files.progress import SOON, progress_bar

PAIRS = 256
"""The number of pairs that are compared at a time."""
PIECE = 16
"""The number of such comparisons in one piece of work for an engine."""
ALIKE_COARSELY, ALIKE, CLEARLY_ALIKE = 0.4, 0.5, 0.7
"""The limits below which pairs are dropped: the coarse correlation, and the variance explained at 16 and 32 pixels."""
NOTHING = -20.0
"""The score of pairs that were dropped."""
WEIGHTS = (1.85, 1.6, -0.25, 2.5, -3.9)
"""The weights of :func:`parts`, followed by the constant."""
_FLOOR = 2e-4
"""The variance below which values count as flat: about 4 gray levels."""


def compare(first: Rows, second: Rows, pairs: np.ndarray, *, engine: Engine | None = None) -> np.ndarray:
    """Score pairs by the log odds that both images show one picture, before anything is known of the data.

    Args:
        first: `(n, 32, 32, 3)` uint8 thumbnails.
        second: `(m, 32, 32, 3)` uint8 thumbnails, which may be the same.
        pairs: the pairs `(p, 2)`, an index into each.
        engine: the engine of the comparisons; by default this process.

    Returns:
        The scores, `(p,)` fp32; -20 for pictures without any likeness.

    Raises:
        DataError: if the thumbnails have another shape.
    """
    for thumbnails in (first, second):
        if thumbnails.dtype != np.uint8 or thumbnails.shape[1:] != (SIDE, SIDE, 3):
            raise DataError(
                f"Thumbnails of shape {thumbnails.shape} and type {thumbnails.dtype}",
                expected=f"(n, {SIDE}, {SIDE}, 3) uint8",
                remedy="make them with memtrain.families.looks.thumbnail",
            )
    scores = np.full(len(pairs), NOTHING, dtype=np.float32)
    # Pairs of one image follow each other, so that its spectra are made once.
    order = np.lexsort((pairs[:, 0], pairs[:, 1])) if len(pairs) else np.zeros(0, dtype=np.int64)
    engine = engine or LocalEngine()
    pieces = [order[start : start + PIECE * PAIRS] for start in range(0, len(order), PIECE * PAIRS)]
    here = isinstance(engine, LocalEngine)  # other engines need the thumbnails in memory
    shared = [engine.share(one if here else np.asarray(one)) for one in (first, second)] if pieces else []
    done = engine.map(_piece, (pairs[some] for some in pieces), shared=shared)
    with progress_bar(total=len(pairs), desc="comparing pictures", unit="pair", leave=False, delay=SOON) as bar:
        for some, found in zip(pieces, done, strict=True):
            scores[some] = found
            bar.update(len(some))
    return scores


def _piece(first: Rows, second: Rows, pairs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = [_scores(first, second, pairs[start : start + PAIRS]) for start in range(0, len(pairs), PAIRS)]
    return torch.cat(parts).numpy()


def _scores(first: Rows, second: Rows, pairs: np.ndarray) -> Tensor:
    features, kept = registered_parts(first, second, pairs)
    scores = torch.full((len(pairs),), NOTHING)
    scores.scatter_reduce_(0, kept, features @ torch.tensor(WEIGHTS[:-1]) + WEIGHTS[-1], "amax")
    return scores


def registered_parts(first: Rows, second: Rows, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the :func:`parts` of placements that look alike, `(k, 4)`, and the pair of each placement, `(k,)`."""
    a, a_of = _unique(first, pairs[:, 0])
    b, b_of = _unique(second, pairs[:, 1])
    correlation, placement = coarse_placements(spectra(a)[a_of], scaled_spectra(b)[b_of])
    kept = (correlation.flatten() >= ALIKE_COARSELY).nonzero()[:, 0]
    which = kept // KEPT
    grey_a, grey_b = luminance(a), luminance(b)
    small_a, small_b = (F.avg_pool2d(grey, SIDE // COARSE) for grey in (grey_a, grey_b))
    placement, explained = refine(small_a[a_of[which]], small_b[b_of[which]], placement[kept], steps=4)
    best = torch.full((len(pairs),), ALIKE).scatter_reduce_(0, which, explained, "amax")
    alike = (explained >= best[which]).nonzero()[:, 0]
    which, placement = which[alike], placement[alike]
    # Either picture may have lost detail, so each is laid over the other.
    below, above = torch.cat([a[a_of[which]], b[b_of[which]]]), torch.cat([b[b_of[which]], a[a_of[which]]])
    back = placement.inverse()
    placement = Placement(torch.cat([placement.motion, back.motion]), torch.cat([placement.mirrored, back.mirrored]))
    placement, explained = refine(luminance(below), luminance(above), placement)
    alike = (explained >= CLEARLY_ALIKE).nonzero()[:, 0]
    return parts(below[alike], above[alike], placement[alike]), which.repeat(2)[alike]


def parts(a: Tensor, b: Tensor, placement: Placement) -> Tensor:
    """Compute the parts of the score, which are larger for copies.

    Args:
        a: `(m, 3, 32, 32)` from 0 to 1.
        b: the same.
        placement: the placement of b over a.

    Returns:
        Four parts, `(m, 4)`. The first is the negative logarithm of the worst block's disagreement in luminance. The
        second is the same in color, and 0 if one picture is gray. The third says whether colors can be compared, from 0
        to 1. The fourth is the negative stretch of b.
    """
    weight = placement.cover()
    a, b = _smooth(a), _smooth(placement.place(b))
    grey_a, grey_b = luminance(a), luminance(b)
    worst = _worst_disagreement(grey_a, grey_b, weight)
    colour_a, colour_b = _colour(a), _colour(b)
    least = torch.minimum(_variance(colour_a, weight), _variance(colour_b, weight))
    coloured = least / (least + _FLOOR)
    colour_worst = _worst_disagreement(colour_a, colour_b, weight)
    stretch = (placement.motion[:, 0] / placement.motion[:, 1]).log().abs().clamp(max=0.1) * 10
    found = [-(worst + 0.01).log(), -(colour_worst + 0.02).log() * coloured, coloured, -stretch]
    return torch.stack(found, dim=1)


def _variance(values: Tensor, weight: Tensor) -> Tensor:
    """Return the variance under the weight, summed over channels, `(m,)`."""
    return (weight[:, None] * _free(values, weight).square()).sum(dim=(1, 2, 3)) / (weight.sum(dim=(1, 2)) + 1e-6)


def _worst_disagreement(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Return the largest squared difference of all blocks, `(m,)`, at unit variance, relative to their content."""
    a, b = (_free(c, weight) / (_variance(c, weight) + _FLOOR).sqrt()[:, None, None, None] for c in (a, b))
    blocks = torch.stack(
        [(a - b).square().sum(dim=1) * weight, (a.square() + b.square()).sum(dim=1) * weight / 2], dim=1
    )
    apart, shown = F.avg_pool2d(blocks, 8, 4).flatten(2).unbind(dim=1)
    # In a picture of few lines, a block with one of them varies far more than the whole picture.
    return (apart / (0.7 + 0.3 * shown)).amax(dim=1)


def _free(values: Tensor, weight: Tensor) -> Tensor:
    """Return values without their mean, by channel."""
    weight = weight[:, None]
    return values - (weight * values).sum(dim=(2, 3), keepdim=True) / (weight.sum(dim=(2, 3), keepdim=True) + 1e-6)


def _colour(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def _smooth(images: Tensor) -> Tensor:
    """Remove noise and the blocks of JPEG with a binomial filter of three by three."""
    line = images.new_tensor([1, 2, 1]) / 4
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def _unique(thumbnails: Rows, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the images from 0 to 1, `(u, 3, 32, 32)`, and the place of each index among them."""
    chosen, places = np.unique(indices, return_inverse=True)
    images = torch.from_numpy(thumbnails[chosen]).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(places)
