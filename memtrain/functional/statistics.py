"""Thresholds at a stated false-positive rate, p-values, and the direction that separates two groups."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

MINIMUM_CALIBRATING = 8
"""Held-out samples below which not even an assumption on the tail helps."""
TAIL_INDEX = 3.0
"""Power of the distance from the median with which the probability of higher scores is assumed to fall at least."""


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


def tail_threshold(scores: Tensor, false_positive_rate: float) -> float:
    """Threshold at a rate below what an order statistic of so few scores can promise: the highest ones, extended.

    `median + reach / ((n + 1) · rate)^(1/3)`, where `reach` is the distance of the highest scores from the median: of
    the highest, or the mean of that and of 2^(1/3) times that of the second, whichever is more, times (n + 2)/(n − 2)
    for what n scores say wrongly of their own median and spread.

    The highest of n scores is exceeded with probability 1/(n + 1), whatever the distribution. Beyond it, the
    probability is assumed to fall at least with the third power of the distance from the median, as it does in a
    Student distribution of three degrees of freedom and in all that have lighter tails (normal, exponential, Gumbel).
    No other assumption is made. How heavy the tail is, which so few scores cannot show, is not estimated from them: a
    generalised Pareto tail fitted to a quarter of 120 scores gives 3 to 6 times the stated 0.1 %
    (`benchmarks/tail_bounds.py`).

    Equivariant under shift and scaling, and monotone in the rate, with :func:`conformal_threshold` too. With 8 scores
    of which every two are the same (4 draws), three times the rate.

    Args:
        scores: `(n,)` scores of held-out samples, n at least 3.
        false_positive_rate: in (0, 1).

    Raises:
        ValueError: if n is below 3.
    """
    _require(len(scores), 3, "scores to have a tail")
    median, reach = _reach(scores.double())
    beyond = max(1.0, 1 / ((len(scores) + 1) * false_positive_rate))
    return median + reach * beyond ** (1 / TAIL_INDEX)


def tail_p_values(scores: Tensor, null: Tensor) -> Tensor:
    """The lowest rate at which a score is above the threshold, `(m,)` fp64: what both thresholds say backwards.

    (1 + number of the n that are at least as high) / (n + 1), and beyond the highest of them what
    :func:`tail_threshold` makes of the distance.

    Args:
        scores: `(m,)`.
        null: `(n,)` scores when nothing is memorized, n at least 3.

    Raises:
        ValueError: if n is below 3.
    """
    _require(len(null), 3, "scores to have a tail")
    own, ordered, count = scores.double(), null.double().sort().values, len(null)
    ranked = (1 + count - torch.searchsorted(ordered, own)) / (count + 1)
    median, reach = _reach(ordered)
    beyond = (reach / (own - median).clamp(min=1e-300)) ** TAIL_INDEX / (count + 1)
    found = torch.where(own > ordered[-1], torch.minimum(ranked, beyond), ranked)
    return torch.where(own.isnan(), torch.nan, found)


def _reach(scores: Tensor) -> tuple[float, float]:
    """The median of `(n,)` and the distance at which the tail begins, see :func:`tail_threshold`."""
    count, ordered = len(scores), scores.sort().values
    median = float(ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    first, second = float(ordered[-1]) - median, float(ordered[-2]) - median
    reach = max(first, (first + 2 ** (1 / TAIL_INDEX) * second) / 2)
    return median, reach * (count + 2) / (count - 2)


def order_rate_bound(count: int, *, above: int, confidence: float = 0.95) -> float:
    """The rate that the `above`-th highest of `count` scores keeps for a share `confidence` of their draws.

    On average over the draws it is above / (count + 1). The rate of one draw is distributed as
    Beta(above, count − above + 1), whatever the distribution of the scores; this is its quantile, and
    1 − (1 − confidence)^(1 / count) for the highest score: a tolerance bound (Wilks, 1941).
    """
    ways = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(above)]
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        # Probability that fewer lie above, if that is the rate.
        parts = (way + k * math.log(rate) + (count - k) * math.log1p(-rate) for k, way in enumerate(ways))
        low, high = (rate, high) if sum(map(math.exp, parts)) > 1 - confidence else (low, rate)
    return high


def robust_threshold(
    scores: Tensor, false_positive_rate: float, *, upper: bool = False, freedom: float = math.inf
) -> float:
    """Threshold from the bulk of scores that contain some memorized samples: median + quantile · MAD / its own.

    Assumes that less than half of the samples are memorized, and that the others follow Student's distribution, by
    default the normal one (median + z · 1.4826 · MAD).

    Args:
        scores: `(n,)`, n at least 3.
        false_positive_rate: in (0, 1).
        upper: take the spread of the upper half alone, for scores that are skewed to the right, as highest scores are;
            then less than a quarter may be memorized.
        freedom: degrees of freedom of Student's distribution.

    Raises:
        ValueError: if n is below 3: of two scores, the lower is the median and has no distance from itself.
    """
    median, scale = robust_location(scores, upper=upper, freedom=freedom)
    return median + scale * student_quantile(false_positive_rate, freedom)


def robust_p_values(scores: Tensor, bulk: Tensor, *, upper: bool = False, freedom: float = math.inf) -> Tensor:
    """The lowest rate at which a score is above :func:`robust_threshold` of a bulk `(n,)`, `(m,)` fp64."""
    median, scale = robust_location(bulk, upper=upper, freedom=freedom)
    away = (scores.double() - median) / max(scale, 1e-300)
    return student_tail(away, freedom)


def robust_location(scores: Tensor, *, upper: bool, freedom: float) -> tuple[float, float]:
    """Median, and the scale of the distribution that has as large a median absolute deviation."""
    _require(len(scores), 3, "scores to have a bulk")
    median = scores.median()
    distance = (scores - median).abs()
    deviation = (distance[scores > median] if upper and bool((scores > median).any()) else distance).median()
    return float(median), float(deviation) / student_quantile(0.25, freedom)


def student_tail(scores: Tensor, freedom: float) -> Tensor:
    """Probability above each score `(m,)`, under Student's distribution of an odd or infinite freedom."""
    scores = scores.double()
    if math.isinf(freedom):
        return 0.5 * torch.erfc(scores / math.sqrt(2))
    angle = torch.atan2(scores, torch.full_like(scores, math.sqrt(freedom)))
    square, factor, total = angle.cos().square(), torch.ones_like(scores), torch.zeros_like(scores)
    for part in range((int(freedom) - 1) // 2):
        total, factor = total + factor, factor * square * (2 * part + 2) / (2 * part + 3)
    return (0.5 - (angle + angle.sin() * angle.cos() * total) / math.pi).clamp(min=0)


@lru_cache(maxsize=1024)
def student_quantile(rate: float, freedom: float) -> float:
    """The score that is exceeded with probability `rate`, at most a half."""
    if math.isinf(freedom):
        return math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * rate, dtype=torch.float64)))
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        above = float(student_tail(torch.tensor([middle], dtype=torch.float64), freedom))
        low, high = (middle, high) if above > rate else (low, middle)
    return high


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
