"""Thresholds at a stated false-positive rate, p-values, and the direction that separates two groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MINIMUM_CALIBRATING = 8
"""Held-out samples below which not even the normal distribution helps."""


def samples_needed(false_positive_rate: float) -> int:
    """Held-out samples below which no order statistic can promise `false_positive_rate`."""
    return math.ceil(1 / false_positive_rate - 1e-9) - 1


def conformal_threshold(scores: Tensor, false_positive_rate: float) -> float:
    """Threshold that a new score from the distribution of `scores` exceeds with at most the stated probability.

    The ⌈(n + 1)(1 − rate)⌉-th smallest score: split-conformal prediction (Vovk et al., "Algorithmic Learning in a
    Random World", 2005). No assumption but exchangeability.

    Args:
        scores: `(n,)` scores of held-out samples.
        false_positive_rate: in (0, 1).

    Raises:
        ValueError: if n is below :func:`samples_needed`.
    """
    count = len(scores)
    if count < samples_needed(false_positive_rate):
        raise ValueError(
            f"a false-positive rate of {false_positive_rate} needs at least {samples_needed(false_positive_rate)} "
            f"held-out scores, found {count}"
        )
    rank = min(count, math.ceil((count + 1) * (1 - false_positive_rate) - 1e-9))
    return float(scores.sort().values[rank - 1])


def normal_threshold(scores: Tensor, false_positive_rate: float) -> float:
    """The same promise from fewer scores, at the price of assuming that they are normally distributed.

    The upper end of the one-sided prediction interval, `mean + z · s · √(1 + 1/n)`, with the Student quantile
    approximated from the normal one (Hill, "Algorithm 396: Student's t-quantiles", 1970, first two terms).

    Args:
        scores: `(n,)` scores of held-out samples, n at least 3.
        false_positive_rate: in (0, 1).

    Raises:
        ValueError: if n is below 3.
    """
    count = len(scores)
    _require(count, 3, "scores to know their spread")
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * false_positive_rate, dtype=torch.float64)))
    freedom = count - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    spread = float(scores.double().std()) * math.sqrt(1 + 1 / count)
    return float(scores.double().mean()) + student * spread


def robust_threshold(scores: Tensor, false_positive_rate: float, *, upper: bool = False) -> float:
    """Threshold from the bulk of scores that contain some memorized samples: median + z · 1.4826 · MAD.

    Assumes that the bulk is normally distributed and that less than half of the samples are memorized.

    Args:
        scores: `(n,)`, n at least 3.
        false_positive_rate: in (0, 1).
        upper: take the spread of the upper half alone, for scores that are skewed to the right, as highest scores are;
            then less than a quarter may be memorized.

    Raises:
        ValueError: if n is below 3: of two scores, the lower is the median and has no distance from itself.
    """
    _require(len(scores), 3, "scores to have a bulk")
    median = scores.median()
    distance = (scores - median).abs()
    deviation = 1.4826 * (distance[scores > median] if upper and bool((scores > median).any()) else distance).median()
    z = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * false_positive_rate, dtype=torch.float64))
    return float(median + z * deviation)


def normal_p_value(scores: Tensor, *, mean: float, deviation: float) -> Tensor:
    """Probability that a normally distributed score is at least as high, `(n,)` fp64.

    Args:
        scores: `(n,)`.
        mean: of the scores when nothing is memorized.
        deviation: their standard deviation.
    """
    return 0.5 * torch.erfc((scores.double() - mean) / (deviation * math.sqrt(2)))


def holm(p_values: Tensor) -> Tensor:
    """p-values corrected for their number, `(n,)`: the family-wise error rate is at most the level compared with.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    order = p_values.argsort()
    count = len(p_values)
    factors = torch.arange(count, 0, -1, dtype=p_values.dtype)
    stepped = (p_values[order] * factors).cummax(dim=0).values.clamp(max=1.0)
    corrected = torch.empty_like(p_values)
    corrected[order] = stepped
    return corrected


def discriminant(positive: Tensor, negative: Tensor, *, shrinkage: float = 0.5) -> tuple[Tensor, float]:
    """The direction that separates two groups best (Fisher, 1936), from few positives.

    Args:
        positive: `(k, columns)`, at least one.
        negative: `(n, columns)`, at least two; its covariance is used for both groups, because positives are few.
        shrinkage: share of the covariance that is replaced by its diagonal.

    Returns:
        Weights `(columns,)` under which negatives have variance 1, and the distance between the groups' means along
        them, in these standard deviations.

    Raises:
        ValueError: if a group has fewer.
    """
    _require(len(positive), 1, "positives to have a mean")
    _require(len(negative), 2, "negatives to have a covariance")
    centred = negative - negative.mean(dim=0)
    covariance = centred.T @ centred / (len(negative) - 1)
    variance = covariance.diagonal().clamp(min=1e-6)
    covariance = (1 - shrinkage) * covariance + shrinkage * variance.diag() + 1e-6 * torch.eye(len(variance))
    difference = positive.mean(dim=0) - negative.mean(dim=0)
    direction = torch.linalg.solve(covariance, difference)
    distance = float((difference @ direction).clamp(min=0).sqrt())
    return direction / max(distance, 1e-12), distance


def left_out_separation(positive: Tensor, negative: Tensor) -> float:
    """How far :func:`discriminant` tells apart positives that it was not fitted to.

    Each positive is left out once. The separation by a direction that was fitted to all of them grows with chance where
    they are few, and would prefer the directions of few samples.

    Args:
        positive: `(k, columns)`, at least two.
        negative: `(n, columns)`, at least two.

    Returns:
        Mean distance of a left-out positive from the negatives' mean, in their standard deviations; around 0 where
        there is nothing to tell apart.

    Raises:
        ValueError: if a group has fewer.
    """
    _require(len(positive), 2, "positives to leave one out")
    distances = []
    for row in range(len(positive)):
        direction, _ = discriminant(torch.cat([positive[:row], positive[row + 1 :]]), negative)
        distances.append((positive[row] - negative.mean(dim=0)) @ direction)
    return float(torch.stack(distances).mean())


def _require(count: int, fewest: int, what: str) -> None:
    if count < fewest:
        raise ValueError(f"it takes at least {fewest} {what}, found {count}")
