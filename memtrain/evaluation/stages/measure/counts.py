"""From distances and readings to the aggregate figures of `results.json`, and the verdict in plain words.

A prompt, not an image, is what is counted: a prompt is reproduced if any of its seeds is. Of a template, the prompts
are counted together: it is reproduced if any of them is. Every share comes with its n and an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.replication import Replication
from memtrain.functional.ranking import auroc, bootstrap_interval, proportion_interval, true_positive_rate
from memtrain.records import HELDOUT, PLANTED, UNIQUE


def members(groups: Sequence[str], name: str) -> Tensor:
    """`(P,)` bool: which prompts are in the group `name`."""
    return torch.tensor([group == name for group in groups], dtype=torch.bool)


def summarize_groups(
    groups: Sequence[str],
    distances: Replication,
    *,
    threshold: float,
    level: float = 0.95,
    templates: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Replication per group, in the order in which groups first appear.

    Args:
        groups: P group names.
        distances: of P prompts and K seeds.
        threshold: ratio below which a prompt counts as reproduced.
        level: coverage of the intervals.
        templates: P names; prompts with the same one are counted together. Default: each is counted by itself.

    Returns:
        Per group `n` (templates), `prompts`, figures, and `looks`: how many chances to fall below the threshold one of
        the n has for the one of a held-out prompt. A false-positive rate times `looks` bounds the share that chance
        brings about.
    """
    place = list(range(len(groups)))
    if templates is not None:
        numbers = {template: number for number, template in enumerate(dict.fromkeys(templates))}
        place = [numbers[template] for template in templates]
    summary: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(groups):
        inside = members(groups, name)
        _, column = torch.tensor(place)[inside].unique(return_inverse=True)
        n = int(column.max()) + 1
        best = distances.best.new_full((n,), torch.inf).scatter_reduce_(0, column, distances.best[inside], "amin")
        k = int((best < threshold).sum())
        looks = torch.ones(len(groups)) if distances.looks is None else distances.looks
        summary[name] = {
            "n": n,
            "prompts": int(inside.sum()),
            "reproduced": k,
            "share": k / n,
            "interval": list(proportion_interval(k, n, level=level)),
            "share_of_images": float((distances.ratio[inside] < threshold).double().mean()),
            "best_ratio": {"min": float(best.min()), "median": float(best.median()), "max": float(best.max())},
            "looks": float(looks[inside].sum()) / n,
        }
    return summary


def summarize_doses(
    groups: Sequence[str],
    visits: Sequence[int],
    distances: Replication,
    *,
    threshold: float,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Replication per number of repetitions, ascending; 1 stands for the unique prompts.

    Args:
        groups: P group names; only planted and unique prompts are counted.
        visits: P visits per epoch.
        distances: of P prompts and K seeds.
        threshold: ratio below which a prompt counts as reproduced.
        level: coverage of the intervals.

    Returns:
        `repeats`, `n`, `reproduced`, `share` and `interval` of each number; nothing unless prompts were planted at
        several.
    """
    counted = [count if group in (PLANTED, UNIQUE) else 0 for group, count in zip(groups, visits, strict=True)]
    doses = sorted(set(counted) - {0})
    if sum(dose > 1 for dose in doses) < 2:
        return []
    table = []
    for dose in doses:
        best = distances.best[torch.tensor(counted) == dose]
        n, k = len(best), int((best < threshold).sum())
        interval = list(proportion_interval(k, n, level=level))
        table.append({"repeats": dose, "n": n, "reproduced": k, "share": k / n, "interval": interval})
    return table


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
        false_positive_rate: of the threshold. Only a share whose interval lies above what chance brings about, by that
            rate and the group's `looks`, counts as evidence.

    Returns:
        `level`: `reproduces`, `inconclusive`, `none` or `unmeasured`; `text`: one or two sentences.
    """
    trained = {name: group for name, group in groups.items() if name != HELDOUT}
    if not trained:
        return {"level": "unmeasured", "text": "No prompt of a training image was evaluated."}
    words = {name: name.replace("_", " ") for name in trained}
    chance = {name: min(1.0, false_positive_rate * group["looks"]) for name, group in trained.items()}
    parts = [f"{group['reproduced']} of {group['n']} {words[name]}" for name, group in trained.items()]
    counted = f"{_and(parts)} prompts bring back their own training image."
    expected = [
        f"about {chance[name] * group['n']:.1f} of {group['n']} {words[name]}" for name, group in trained.items()
    ]
    by_chance = f"The threshold's false-positive rate would count {_and(expected)} by chance."
    if any(group["interval"][0] > chance[name] for name, group in trained.items()):
        return {"level": "reproduces", "text": f"This model reproduces training images: {counted} {by_chance}"}
    if any(group["reproduced"] for group in trained.values()):
        text = f"A few training images may be reproduced, no more than chance explains: {counted} {by_chance}"
        return {"level": "inconclusive", "text": text}
    ends = [f"below {group['interval'][1]:.0%} of {words[name]}" for name, group in trained.items()]
    text = f"No reproduction was found: {counted} With these numbers of prompts, the true share is {_and(ends)}."
    return {"level": "none", "text": text}


def _and(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
