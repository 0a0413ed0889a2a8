"""Verbatim and template copies: the whole picture comes back, or its layout with other content.

What: a prompt is *verbatim* if one of its generations is as near to its picture as two copies of it are; it is a
*template* if it is not, and a part of the picture is: half of its tiles match, or its edges lie where the picture's do.
Source: Webster, "A reproducible extraction of training images from diffusion models" (arXiv 2305.08694): matching
verbatim if the sum of squared differences at 256 by 256 pixels, values from 0 to 1, is below 2,500
(:data:`PUBLISHED`, a root mean square of 0.113); template verbatim if the same sum within a mask, divided by the mask's
share of the picture, is. Templates are looked for first there; the masks are made by hand, from retrieved pictures.
This is an approximation in three places. The mask is not made by hand: of 8 by 8 tiles it is the half that matches best
(:data:`KEPT`), so plain backgrounds match easily. Foregrounds in other colours leave no tile that matches; for them
the edges are compared: the correlation of Sobel magnitudes, after the idea of the paper's black-box attack, which asks
whether edges agree between generations. And verbatim is asked first, so that a full copy is never called a template.
Levels: those of held-out prompts at a stated false-positive rate each, where there are enough of them; of verbatim the
lower of that and the published one. Without, the published level for verbatim, and no template is named.
Cannot: see copies that are moved or mirrored, nor tell a template from a composition that is common in the data (which
the held-out level allows for only on average).
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
"""Root mean square difference below which a generation is verbatim, of values from 0 to 1."""
TILES = 8
"""Along each side."""
KEPT = 0.5
"""Share of the tiles that a mask keeps."""
VERBATIM, TEMPLATE, NEITHER = "verbatim", "template", "neither"


@dataclass(frozen=True)
class PictureDistances:
    """Of P prompts, each the lowest over K generations; lower means copied.

    Attributes:
        whole: `(P,)` root mean square difference, values from 0 to 1.
        masked: `(P,)` the same over the tiles that match best.
        edges: `(P,)` one minus the correlation of edges.
    """

    whole: Tensor
    masked: Tensor
    edges: Tensor


def picture_distances(generated: Tensor, own: Tensor) -> PictureDistances:
    """Compare generations with their own picture.

    Args:
        generated: `(P, K, 3, H, W)` uint8, at least 8 pixels a side.
        own: `(P, 3, H, W)` uint8.
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
    """Sobel magnitude `(n, H W)` of the luminance of `(n, 3, H, W)`."""
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = functional.pad((pixels * weights).sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = pixels.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradients = functional.conv2d(grey, torch.stack([across, across.T])[:, None])
    return gradients.square().sum(dim=1).sqrt().flatten(1)


def verbatim_and_template(
    distances: PictureDistances, *, trained: Tensor, heldout: Tensor, rate: float = 0.01, level: float = 0.95
) -> dict[str, Any]:
    """How many prompts bring back their picture whole, and how many its template.

    Args:
        distances: of P prompts.
        trained: `(P,)` bool, the prompts that are counted.
        heldout: `(P,)` bool, the prompts whose pictures the model never saw; they set the levels.
        rate: false-positive rate of each of the three levels; with few held-out prompts the lowest that they can
            promise.
        level: coverage of the intervals.

    Returns:
        `n` prompts; `verbatim` and `template`, each with `n`, `prompts`, `share` and `interval`; `kinds`, per prompt of
        `trained`; `levels` (`whole`, `masked`, `edges`; None for what cannot be judged) and their `rate` (None without
        held-out prompts).
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
    """Of rows `(n, D)` with one row `(1, D)`; 0 where one of them is constant."""
    a, b = first - first.mean(dim=1, keepdim=True), second - second.mean(dim=1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-6, (a * b).sum(dim=1) / norm.clamp(min=1e-6), 0.0)
