"""From distances and readings to the aggregate figures of `results.json`, and the verdict in plain words.

A prompt, not an image, is what is counted: a prompt is reproduced if any of its seeds is. Every share comes with its
n and an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.replication import Replication
from memtrain.functional.ranking import auroc, bootstrap_interval, proportion_interval, true_positive_rate

PLANTED, UNIQUE, HELDOUT = "planted", "unique", "heldout"
"""Groups of prompts: training images repeated on purpose, training images seen once per epoch, images never seen."""


def members(groups: Sequence[str], name: str) -> Tensor:
    """`(P,)` bool: which prompts are in the group `name`."""
    return torch.tensor([group == name for group in groups])


def summarize_groups(
    groups: Sequence[str], distances: Replication, *, threshold: float, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Replication per group, in the order in which groups first appear.

    Args:
        groups: P group names.
        distances: of P prompts and K seeds.
        threshold: ratio below which a prompt counts as reproduced.
        level: coverage of the intervals.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(groups):
        inside = members(groups, name)
        best = distances.best[inside]
        n, k = len(best), int((best < threshold).sum())
        summary[name] = {
            "n": n,
            "reproduced": k,
            "share": k / n,
            "interval": list(proportion_interval(k, n, level=level)),
            "share_of_images": float((distances.ratio[inside] < threshold).double().mean()),
            "best_ratio": {"min": float(best.min()), "median": float(best.median()), "max": float(best.max())},
        }
    return summary


def summarize_detectors(
    detectors: Sequence[Detector],
    scores: dict[str, Tensor],
    groups: Sequence[str],
    *,
    reproduced: Tensor,
    false_positive_rate: float,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """How well each detector separates planted from other prompts, and reproduced from not reproduced ones.

    Args:
        detectors: for their names and directions.
        scores: per detector name `(P,)`.
        groups: P group names.
        reproduced: `(P,)` bool.
        false_positive_rate: at which the true-positive rate is read.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        level: coverage of the intervals.

    Returns:
        Per detector name its facts and its comparisons; a comparison lacking a class is left out.
    """
    planted, unique, heldout = (members(groups, name) for name in (PLANTED, UNIQUE, HELDOUT))
    comparisons = {
        "planted_vs_heldout": (planted, heldout),
        "planted_vs_unique": (planted, unique),
        "reproduced_vs_others": (reproduced, ~reproduced),
    }
    summary: dict[str, dict[str, Any]] = {}
    for detector in detectors:
        oriented = scores[detector.name] * (1 if detector.higher_means_memorized else -1)
        found: dict[str, dict[str, Any]] = {}
        for name, (positive, negative) in comparisons.items():
            if positive.any() and negative.any():
                chosen = positive | negative
                values, labels = oriented[chosen], positive[chosen]
                interval = bootstrap_interval(auroc, values, labels, seed=seed, resamples=resamples, level=level)
                rate = true_positive_rate(values, labels, false_positive_rate=false_positive_rate)
                found[name] = {
                    "positives": int(positive.sum()),
                    "negatives": int(negative.sum()),
                    "auroc": float(auroc(values, labels)),
                    "interval": list(interval),
                    "true_positive_rate": float(rate),
                    "false_positive_rate": false_positive_rate,
                }
        summary[detector.name] = {
            "higher_means_memorized": detector.higher_means_memorized,
            "cost": detector.cost,
            "comparisons": found,
        }
    return summary


def verdict(groups: dict[str, dict[str, Any]], *, false_positive_rate: float) -> dict[str, str]:
    """What the replication figures say, in words.

    Args:
        groups: from :func:`summarize_groups`.
        false_positive_rate: of the threshold. Only a share whose interval lies above it counts as evidence.

    Returns:
        `level`: `reproduces`, `inconclusive`, `none` or `unmeasured`; `text`: one or two sentences.
    """
    trained = {name: group for name, group in groups.items() if name != HELDOUT}
    if not trained:
        return {"level": "unmeasured", "text": "No prompt of a training image was evaluated."}
    parts = [f"{group['reproduced']} of {group['n']} {name}" for name, group in trained.items()]
    counted = f"{' and '.join(parts)} prompts bring back their own training image."
    expected = [
        f"about {false_positive_rate * group['n']:.1f} of {group['n']} {name}" for name, group in trained.items()
    ]
    by_chance = f"The threshold's false-positive rate would count {' and '.join(expected)} by chance."
    if any(group["interval"][0] > false_positive_rate for group in trained.values()):
        return {"level": "reproduces", "text": f"This model reproduces training images: {counted} {by_chance}"}
    if any(group["reproduced"] for group in trained.values()):
        text = f"A few training images may be reproduced, no more than chance explains: {counted} {by_chance}"
        return {"level": "inconclusive", "text": text}
    ends = [f"below {group['interval'][1]:.0%} of {name}" for name, group in trained.items()]
    text = (
        f"No reproduction was found: {counted} With these numbers of prompts, the true share is {' and '.join(ends)}."
    )
    return {"level": "none", "text": text}
