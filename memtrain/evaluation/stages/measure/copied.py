"""Findings of a measure of copying for the generations of a run or folder: thresholds, counts and chance.

Own picture: a prompt is reproduced by a measure if its most similar generation reaches the threshold. All files of a
picture, and all pictures with one caption, count as the prompt's own, and each adds a chance to be similar. So the
threshold of such a prompt is raised by a bound on the gain, at the same rate. The gain is how much more similar the
held-out generations are to the most similar file than to the first file. Each of two values exceeds its bound with a
probability of at most `rate`. Their sum then exceeds the sum of the bounds with a probability of at most 2 · `rate`,
for any dependence (:mod:`memtrain.evaluation.measures.looks` does the same for ratios).
Plain pictures: some pictures are similar to most generations. So a prompt's threshold is at least the value that the
generations for held-out prompts reach with its picture, at the same rate. This can only lower the false-positive rate.
Made captions: if no picture was held out, the null values are the similarities of each made caption's generations to
the most similar training picture. This is a maximum over all pictures, so the threshold is at least that for one
picture.
Nearest: a generation is a copy of some training picture if its similarity to the nearest exceeds the prompts'
threshold, and the similarity of 99 % of the training pictures to each other.
Cost: one description of every generation and every training picture for each measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import Compared, CopyMeasure
from memtrain.evaluation.measures.copying.calibration import CopyCalibration
from memtrain.evaluation.stages.measure.chance import by_chance, let_through
from memtrain.evaluation.stages.measure.counting.shares import counted, share_of_generations
from memtrain.evaluation.stages.measure.counts import members
from memtrain.functional.statistics import conformal_threshold


@dataclass(frozen=True)
class Copied:
    """Findings of one measure for P prompts.

    Attributes:
        name: the name of the measure.
        compared: the similarities.
        calibration: the calibration of the similarities in these data.
        thresholds: the similarity at which each prompt counts as reproduced, `(P,)` fp64.
        factors: the factor of the false-positive rate of each prompt's threshold, `(P,)` int64: 1, or 2 with several
            own pictures.
    """

    name: str
    compared: Compared
    calibration: CopyCalibration
    thresholds: Tensor
    factors: Tensor

    @property
    def reproduced(self) -> Tensor:
        """Prompts that count as reproduced, `(P,)` bool."""
        return self.compared.best.double() >= self.thresholds

    @property
    def copy_of_any(self) -> float:
        """Similarity at which a generation counts as a copy of its nearest training picture."""
        return max(self.calibration.threshold, self.calibration.train_to_train.get("percentile_99", -float("inf")))


def null_values(compared: Compared, calibrating: Tensor, *, made: bool) -> Tensor:
    """Return the null values `(n,)`: similarities to the own picture, or for made captions to the nearest picture."""
    values = compared.nearest.amax(dim=1) if made else compared.best
    return values[calibrating]


def thresholds_of_prompts(
    measure: CopyMeasure,
    generated: Tensor,
    features: Tensor,
    *,
    mine: Sequence[Sequence[int]],
    threshold: float,
    rate: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute thresholds that allow for several own pictures and for plain pictures, and the factors of their rates.

    Args:
        measure: the measure.
        generated: the generations of the prompts that set the threshold, `(n, K, 3, H, W)` uint8.
        features: the features of the training images.
        mine: the indices of the own pictures of each prompt in `features`, by prompt.
        threshold: the threshold of a prompt with one own picture.
        rate: the false-positive rate of that threshold; None if it is not known, and then all prompts have `threshold`.

    Returns:
        The thresholds `(P,)` fp64, and the factors `(P,)` int64.
    """
    thresholds = torch.full((len(mine),), threshold, dtype=torch.float64)
    factors = torch.ones(len(mine), dtype=torch.int64)
    if rate is None or not len(generated):
        return thresholds, factors
    queries = measure.describe(generated.flatten(0, 1))
    single = [prompt for prompt, indices in enumerate(mine) if len(indices) == 1]
    if single:
        alike = measure.similarity(queries, features[[mine[prompt][0] for prompt in single]]).double()
        for prompt, values in zip(single, alike.view(*generated.shape[:2], -1).amax(dim=1).T, strict=True):
            thresholds[prompt] = max(threshold, _above(values, rate))
    known: dict[tuple[int, ...], float] = {}
    for prompt in [prompt for prompt, indices in enumerate(mine) if len(indices) > 1]:
        indices = tuple(mine[prompt])
        if indices not in known:
            alike = measure.similarity(queries, features[list(indices)]).double()
            gain = (alike.amax(dim=1) - alike[:, 0]).view(generated.shape[:2]).amax(dim=1)
            highest = alike.amax(dim=1).view(generated.shape[:2]).amax(dim=1)
            known[indices] = max(threshold + conformal_threshold(gain, rate), _above(highest, rate))
        thresholds[prompt] = known[indices]
        factors[prompt] = 2
    return thresholds, factors


def _above(values: Tensor, rate: float) -> float:
    """Return the lowest number that a further one of `(n,)` values reaches with a probability of at most `rate`."""
    return math.nextafter(conformal_threshold(values, rate), math.inf)


def own_pictures(own_index: Tensor, family: Tensor, shared: Sequence[Sequence[int]]) -> list[list[int]]:
    """Find each prompt's own training images: all files of its picture and of the pictures with its caption.

    Args:
        own_index: the index of each own image among the training images, `(P,)`; -1 for prompts without one.
        family: the number of the picture of each training image, `(M,)`.
        shared: the indices of the training images with a prompt's caption, by prompt.
    """
    files: dict[int, list[int]] = {}
    for index, number in enumerate(family.tolist()):
        files.setdefault(number, []).append(index)
    found = []
    for index, under in zip(own_index.tolist(), shared, strict=True):
        first = [index] if index >= 0 else []
        numbers = dict.fromkeys(int(family[one]) for one in [*first, *under])
        rest = [member for number in numbers for member in files[number]]
        found.append(list(dict.fromkeys([*first, *rest])))
    return found


def counted_groups(
    copied: Copied, groups: Sequence[str], pictures: Sequence[str], *, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Count the reproduced pictures of each group by a measure, with the probability of as many by chance.

    Args:
        copied: the findings for P prompts.
        groups: the P group names.
        pictures: the P names of the pictures; prompts with the same name are counted together.
        level: coverage of the intervals.

    Returns:
        By group `n`, `reproduced`, `share`, `interval`, `expected` (number of pictures by chance), `probability` (of as
        many pictures by chance; both None if the rate is not known) and `highest` (largest excess over a threshold).
    """
    calibration = copied.calibration
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(groups):
        inside = members(groups, name).nonzero().squeeze(1).tolist()
        names = {pictures[row] for row in inside}
        back = {pictures[row] for row in inside if copied.reproduced[row]}
        n, k = len(names), len(back)
        rate, expected, probability = calibration.false_positive_rate, None, None
        if rate is not None:
            # A picture with several prompts has as many chances.
            chances = float(copied.factors[inside].sum()) / n
            expected = min(1.0, rate * chances) * n
            allowed = round(let_through(rate, calibration.heldout) * max(1.0, chances))
            probability = by_chance(k, n, allowed=allowed, heldout=calibration.heldout)
        excess = copied.compared.best.double()[inside] - copied.thresholds[inside]
        found[name] = {
            **counted(k, n, level=level),
            "expected": expected,
            "probability": probability,
            "highest": float(excess.max()),
        }
    return found


def said_of_measure(
    copied: Copied, groups: Sequence[str], pictures: Sequence[str], *, asked: Tensor, level: float = 0.95
) -> dict[str, Any]:
    """Make the part of `results.json` on one measure.

    Args:
        copied: the findings for P prompts.
        groups: the P group names.
        pictures: the P names of the pictures to count.
        asked: the prompts whose picture was trained on, `(P,)` bool.
        level: the coverage of the intervals.
    """
    calibration, compared = copied.calibration, copied.compared
    nearest = compared.nearest[asked].double()
    between = compared.between[asked]
    between = between[~between.isnan()]
    return {
        "threshold": calibration.threshold,
        "false_positive_rate": calibration.false_positive_rate,
        "rate_bound": calibration.rate_bound,
        "n_heldout": calibration.heldout,
        "sees": calibration.sees,
        "power": calibration.power,
        "train_to_train": calibration.train_to_train,
        "groups": counted_groups(copied, groups, pictures, level=level),
        "nearest": {
            "threshold": copied.copy_of_any,
            **share_of_generations(nearest >= copied.copy_of_any, level=level),
        },
        "between": counted(
            int((between.double() >= calibration.threshold).sum()), len(between), name="alike", level=level
        ),
    }
