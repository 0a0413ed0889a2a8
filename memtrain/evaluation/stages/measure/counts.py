"""Aggregate figures of `results.json`, from distances and readings.

The figures count pictures, not images. A prompt is reproduced if any of its seeds is reproduced, and a picture if any
of its prompts is. Every share comes with its n and an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.replication import Replication
from memtrain.functional.ranking import auroc, bootstrap_interval, proportion_interval, true_positive_rate
from memtrain.records import HELDOUT, PLANTED, REPEATED, UNIQUE


def members(groups: Sequence[str], name: str) -> Tensor:
    """Return `(P,)` bool: whether each prompt is in the group `name`."""
    return torch.tensor([group == name for group in groups], dtype=torch.bool)


@dataclass(frozen=True)
class BeyondLooks:
    """Thresholds for prompts with several own images; see :mod:`memtrain.evaluation.measures.looks`.

    Attributes:
        thresholds: the threshold of each prompt, `(P,)`.
        rates: the false-positive rate of each threshold, `(P,)`.
    """

    thresholds: Tensor
    rates: Tensor


def summarize_groups(
    groups: Sequence[str],
    distances: Replication,
    *,
    threshold: float,
    level: float = 0.95,
    pictures: Sequence[str] | None = None,
    beyond: BeyondLooks | None = None,
    population: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Summarize replication by group, in the order in which groups first appear.

    Args:
        groups: the P group names.
        distances: the distances of P prompts and K seeds.
        threshold: the ratio below which a prompt counts as reproduced.
        level: the coverage of the intervals.
        pictures: the P names of the pictures; prompts with the same name are counted together. By default, each prompt
            counts by itself.
        beyond: the thresholds that allow for several own images; if given, they replace `threshold`.
        population: the numbers of pictures by group, sampled or not.

    Returns:
        By group `n` (pictures), `prompts`, figures, `of` if it is known, and `looks`: how many chances a picture has to
        fall below the threshold, where a held-out prompt has one. The false-positive rate times `looks` bounds the
        share by chance. If a picture has several looks, `beyond_looks` counts with thresholds that allow for the looks,
        and `chance` bounds the share.
    """
    place = list(range(len(groups)))
    if pictures is not None:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(pictures))}
        place = [numbers[name] for name in pictures]
    limits = distances.best.new_full((len(groups),), threshold) if beyond is None else beyond.thresholds.float()
    summary: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(groups):
        inside = members(groups, name)
        _, column = torch.tensor(place)[inside].unique(return_inverse=True)
        n = int(column.max()) + 1
        best = distances.best.new_full((n,), torch.inf).scatter_reduce_(0, column, distances.best[inside], "amin")
        k = len(set(column[distances.best[inside] < limits[inside]].tolist()))
        looks = torch.ones(len(groups)) if distances.looks is None else distances.looks
        summary[name] = {
            "n": n,
            "prompts": int(inside.sum()),
            "reproduced": k,
            "share": k / n,
            "interval": list(proportion_interval(k, n, level=level)),
            "share_of_images": float((distances.ratio[inside] < limits[inside, None]).double().mean()),
            "best_ratio": {"min": float(best.min()), "median": float(best.median()), "max": float(best.max())},
            "looks": float(looks[inside].sum()) / n,
        }
        if population is not None and name in population:
            summary[name]["of"] = population[name]
        if beyond is not None and bool((looks[inside] > 1).any()):
            summary[name]["beyond_looks"] = {
                "reproduced": k,
                "interval": summary[name]["interval"],
                "chance": min(1.0, float(beyond.rates[inside].sum()) / n),
            }
    return summary


def summarize_doses(
    groups: Sequence[str],
    visits: Sequence[int],
    distances: Replication,
    *,
    threshold: float,
    level: float = 0.95,
    pictures: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Summarize replication by number of repetitions, ascending; 1 stands for the unique pictures.

    Args:
        groups: the P group names; only planted, repeated and unique pictures are counted.
        visits: the P numbers of visits per epoch of each prompt's picture, over all its files.
        distances: the distances of P prompts and K seeds.
        threshold: the ratio below which a prompt counts as reproduced.
        level: the coverage of the intervals.
        pictures: the P names of the pictures, as for :func:`summarize_groups`.

    Returns:
        `repeats`, `n`, `reproduced`, `share` and `interval` of each number of repetitions; an empty list if there are
        fewer than two numbers above 1.
    """
    counted = [
        count if group in (PLANTED, REPEATED, UNIQUE) else 0 for group, count in zip(groups, visits, strict=True)
    ]
    doses = sorted(set(counted) - {0})
    if sum(dose > 1 for dose in doses) < 2:
        return []
    names = list(pictures) if pictures is not None else [str(number) for number in range(len(groups))]
    table = []
    for dose in doses:
        best: dict[str, float] = {}
        for name, count, ratio in zip(names, counted, distances.best.tolist(), strict=True):
            if count == dose:
                best[name] = min(ratio, best.get(name, ratio))
        n, k = len(best), sum(ratio < threshold for ratio in best.values())
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
    """Measure how well each detector separates planted from other prompts, and reproduced from other prompts.

    Args:
        detectors: the detectors, for their names and directions.
        scores: the scores by detector name, `(P,)`.
        groups: the P group names.
        reproduced: whether each prompt is reproduced, `(P,)` bool.
        false_positive_rate: the false-positive rate at which the true-positive rate is read.
        seed: the seed of the bootstrap.
        resamples: the number of resamples of the bootstrap.
        level: the coverage of the intervals.

    Returns:
        By detector name its properties and comparisons; a comparison that lacks a class is left out.
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
