"""What the measures of copying say of a run's or folder's generations: each calibrated, counted, and held to chance.

Own picture: a prompt is reproduced by a measure if its most alike generation reaches the threshold. The files of a
picture, and the pictures under one caption, all count as its own, and each is one more chance to be alike. So the
threshold of such a prompt is raised by how much more alike the held-out generations are to the most alike of the files
than to the first alone, at the same rate: the sum of two values, each beyond its bound with probability `rate` at most,
is beyond the sum of the bounds with probability 2 · `rate` at most, however they depend on each other
(:mod:`memtrain.evaluation.measures.looks` does so for ratios).
Plain pictures: some are alike to whatever is generated. So a prompt's threshold is also no lower than what the
generations for held-out prompts reach with its picture, at the same rate, which can only lower the false-positive rate.
Made captions: where no picture was held out, the null is made of the most alike training picture of each made caption.
That is the maximum over all of them, so every threshold that it gives is at least that of one picture.
Nearest: a generation is a copy of some training picture if it is more alike to the nearest than prompts' thresholds
and 99 % of the training pictures among each other are.
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
    """What one measure says of P prompts.

    Attributes:
        name: of the measure.
        compared: similarities.
        calibration: what they mean in these data.
        thresholds: `(P,)` fp64, similarity from which a prompt counts as reproduced.
        factors: `(P,)` int64, times the rate that a prompt's threshold keeps: 1, or 2 with several own pictures.
    """

    name: str
    compared: Compared
    calibration: CopyCalibration
    thresholds: Tensor
    factors: Tensor

    @property
    def reproduced(self) -> Tensor:
        """`(P,)` bool."""
        return self.compared.best.double() >= self.thresholds

    @property
    def copy_of_any(self) -> float:
        """Similarity from which a generation is a copy of whatever training picture is nearest."""
        return max(self.calibration.threshold, self.calibration.train_to_train.get("percentile_99", -float("inf")))


def null_values(compared: Compared, calibrating: Tensor, *, made: bool) -> Tensor:
    """`(n,)` what chance brings: of held-out prompts similarity to the own picture, of made ones to the nearest."""
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
    """Thresholds that allow for several own pictures and for plain ones, and times which rate they keep.

    Args:
        measure: the measure.
        generated: `(n, K, 3, H, W)` uint8, of the prompts that set the threshold.
        features: of the training images.
        mine: per prompt the indices of its own pictures in `features`.
        threshold: of a prompt with one own picture.
        rate: of that threshold; None where none is known, and then nothing is added.

    Returns:
        `(P,)` fp64 and `(P,)` int64.
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
    """The lowest number that a further one of `(n,)` values reaches with a probability of `rate` at most."""
    return math.nextafter(conformal_threshold(values, rate), math.inf)


def own_pictures(own_index: Tensor, family: Tensor, shared: Sequence[Sequence[int]]) -> list[list[int]]:
    """Per prompt the training images that are its own: all files of its picture and of those under its caption.

    Args:
        own_index: `(P,)`; -1 of prompts that were never trained on, which have none.
        family: `(M,)`, the same number for training images that are one picture.
        shared: per prompt the indices of the training images under its caption.
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
    """How many pictures of each group are reproduced by a measure, and how likely chance brings as many.

    Args:
        copied: of P prompts.
        groups: P group names.
        pictures: P names; prompts with the same one are counted together.
        level: coverage of the intervals.

    Returns:
        Per group `n`, `reproduced`, `share`, `interval`, `expected` (pictures that chance brings), `probability` (of as
        many by chance; both None where the rate is not known) and `highest` (the largest excess over a threshold).
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
            # A picture that is asked for by several prompts has as many chances.
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
    """What `results.json` says of a measure.

    Args:
        copied: of P prompts.
        groups: P group names.
        pictures: P names of what is counted.
        asked: `(P,)` bool, the prompts that were trained on.
        level: coverage of the intervals.
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
