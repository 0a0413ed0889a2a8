"""Verbatim and template copies: the whole picture comes back, or its layout with other content.

Method: a prompt is *verbatim* if one of its generations is as near to its picture as a copy of it is. It is a
*template* if it is not verbatim but a part of the picture comes back: half of its tiles match, or its edges match.
Source: Webster, "A reproducible extraction of training images from diffusion models" (arXiv 2305.08694). A copy matches
verbatim if the sum of squared differences at 256 by 256 pixels, values from 0 to 1, is below 2,500 (:data:`PUBLISHED`,
a root mean square of 0.113). It is template verbatim if the same sum within a mask, divided by the mask's share of the
picture, is below it. The paper tests for templates first, with masks made by hand from retrieved pictures. This module
approximates the paper in three places. The mask is not made by hand: it is the half of 8 by 8 tiles that matches best
(:data:`KEPT`), so plain backgrounds match easily. Foregrounds in other colours leave no tile that matches. For them the
edges are compared by the correlation of Sobel magnitudes. This follows the paper's black-box attack, which tests
whether edges agree between generations. Verbatim is tested first, so that a full copy never counts as a template.
Levels: each level comes from held-out prompts at a stated false-positive rate, if there are enough of them. Verbatim
takes the lower of this and the published level. Without held-out prompts, verbatim takes the published level, and no
prompt counts as a template.
Cannot: see copies that are moved or mirrored, nor tell a template from a composition that is common in the data (the
held-out level allows for this only on average).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from memtrain.evaluation.stages.measure.counting.shares import counted
from memtrain.functional.ranking import lower_threshold
from memtrain.functional.statistics import samples_needed

PUBLISHED = (2500 / (3 * 256 * 256)) ** 0.5
"""Root mean square difference below which a generation is verbatim, for values from 0 to 1."""
TILES = 8
"""Number of tiles along each side."""
KEPT = 0.5
"""Share of the tiles that a mask keeps."""
VERBATIM, TEMPLATE, NEITHER = "verbatim", "template", "neither"


@dataclass(frozen=True)
class PictureDistances:
    """Distances of P prompts, each the lowest over K generations; lower means copied.

    Attributes:
        whole: the root mean square difference, `(P,)`, for values from 0 to 1.
        masked: the same difference over the tiles that match best, `(P,)`.
        edges: one minus the correlation of edges, `(P,)`.
    """

    whole: Tensor
    masked: Tensor
    edges: Tensor


def picture_distances(generated: Tensor, own: Tensor) -> PictureDistances:
    """Compare generations with their own picture.

    Args:
        generated: the generations, `(P, K, 3, H, W)` uint8, with at least 8 pixels per side.
        own: the own pictures, `(P, 3, H, W)` uint8.
    """
    whole, masked, edges = [], [], []
    for images, picture in zip(generated, own, strict=True):
        pixels, target = images.float() / 255, picture[None].float() / 255
        squared = (pixels - target).square().mean(dim=1, keepdim=True)
        tiles = functional.adaptive_avg_pool2d(squared, TILES).flatten(1).sort(dim=1).values
        whole.append(squared.mean(dim=(1, 2, 3)).sqrt().min())
        masked.append(tiles[:, : int(KEPT * tiles.shape[1])].mean(dim=1).sqrt().min())
        edges.append((1 - _correlation(edge_strength(pixels), edge_strength(target))).min())
    return PictureDistances(torch.stack(whole), torch.stack(masked), torch.stack(edges))


def edge_strength(pixels: Tensor) -> Tensor:
    """Compute the Sobel magnitude `(n, H W)` of the luminance of `(n, 3, H, W)`."""
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = functional.pad((pixels * weights).sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = pixels.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradients = functional.conv2d(grey, torch.stack([across, across.T])[:, None])
    return gradients.square().sum(dim=1).sqrt().flatten(1)


def verbatim_and_template(
    distances: PictureDistances, *, trained: Tensor, heldout: Tensor, rate: float = 0.01, level: float = 0.95
) -> dict[str, Any]:
    """Count the prompts that bring back their whole picture, and the prompts that bring back its template.

    Args:
        distances: the distances of P prompts.
        trained: the prompts that are counted, `(P,)` bool.
        heldout: the prompts whose pictures the model never saw, `(P,)` bool; they set the levels.
        rate: the false-positive rate of each of the three levels; with few held-out prompts, the lowest rate that their
            number allows.
        level: the coverage of the intervals.

    Returns:
        `n` (prompts), `verbatim` and `template` (each with `n`, `prompts`, `share` and `interval`), `kinds` (by prompt
        of `trained`), `levels` (`whole`, `masked`, `edges`; None without a level), their `rate` (None without held-out
        prompts), and `heldout` (number of held-out prompts).
    """
    n_heldout = int(heldout.sum())
    levels: dict[str, float | None] = {"whole": PUBLISHED, "masked": None, "edges": None}
    known = None
    if n_heldout >= 8:
        known = rate if n_heldout >= samples_needed(rate) else 1 / (n_heldout + 1)
        for name in levels:
            levels[name] = lower_threshold(getattr(distances, name)[heldout], known)
        levels["whole"] = min(PUBLISHED, levels["whole"] or 0.0)
    whole = distances.whole < (levels["whole"] or 0.0)
    alike = torch.zeros_like(whole)
    for name in ("masked", "edges"):
        if levels[name] is not None:
            alike |= getattr(distances, name) < levels[name]
    kinds = [
        VERBATIM if first else TEMPLATE if second else NEITHER
        for first, second in zip(whole[trained].tolist(), alike[trained].tolist(), strict=True)
    ]
    return {
        "n": len(kinds),
        VERBATIM: counted(kinds.count(VERBATIM), len(kinds), name="prompts", level=level),
        TEMPLATE: counted(kinds.count(TEMPLATE), len(kinds), name="prompts", level=level),
        "kinds": kinds,
        "levels": levels,
        "rate": known,
        "heldout": n_heldout,
    }


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlate rows `(n, D)` with one row `(1, D)`; 0 if one of them is constant."""
    a, b = first - first.mean(dim=1, keepdim=True), second - second.mean(dim=1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-6, (a * b).sum(dim=1) / norm.clamp(min=1e-6), 0.0)
