"""Thresholds at a stated false-positive rate, p-values, and the direction that best separates two groups."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

MINIMUM_CALIBRATING = 8
"""Lowest number of held-out samples for a threshold with an assumption on the tail."""
TAIL_INDEX = 3.0
"""Assumed lowest power of the distance from the median with which the probability of higher scores falls."""


def samples_needed(false_positive_rate: float) -> int:
    """Return the number of held-out samples from which on an order statistic can guarantee `false_positive_rate`."""
    return math.ceil(1 / false_positive_rate - 1e-9) - 1


def conformal_threshold(scores: Tensor, false_positive_rate: float) -> float:
    """Return a threshold that a score like `scores` exceeds with at most the stated probability.

    The ⌈(n + 1)(1 − rate)⌉-th smallest score: split-conformal prediction (Vovk et al., "Algorithmic Learning in a
    Random World", 2005). It assumes only exchangeability.

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
    """Return a threshold for a rate below the guarantee of an order statistic, extrapolated from the highest scores.

    `median + reach / ((n + 1) · rate)^(1/3)`. Here `reach` is the larger of two values: the distance d₁ of the highest
    score from the median, and the mean of d₁ and 2^(1/3) · d₂, where d₂ is that distance of the second highest. It is
    multiplied by (n + 2)/(n − 2) for the error of median and spread of n scores.

    For any distribution, the highest of n scores is exceeded with probability 1/(n + 1). Beyond it, the probability is
    assumed to fall at least with the third power of the distance from the median. This holds for a Student distribution
    of three degrees of freedom and for all with lighter tails (normal, exponential, Gumbel). No other assumption is
    made. The weight of the tail is not estimated, because so few scores do not show it. A generalised Pareto tail
    fitted to a quarter of 120 scores gives 3 to 6 times the stated 0.1 % (`benchmarks/tail_bounds.py`).

    The threshold is equivariant under shift and scaling, and monotone in the rate, also across
    :func:`conformal_threshold`. With 8 scores in 4 equal pairs (4 draws), the actual rate is three times the stated
    one.

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
    """Return the lowest rate at which a score is above the threshold, `(m,)` fp64: the inverse of both thresholds.

    (1 + number of the n that are at least as high) / (n + 1), and beyond the highest of them the rate at which
    :func:`tail_threshold` equals the score.

    Args:
        scores: `(m,)`.
        null: `(n,)` scores without memorization, n at least 3.

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
    """Return the median of `(n,)` and the distance at which the tail begins, see :func:`tail_threshold`."""
    count, ordered = len(scores), scores.sort().values
    median = float(ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    first, second = float(ordered[-1]) - median, float(ordered[-2]) - median
    reach = max(first, (first + 2 ** (1 / TAIL_INDEX) * second) / 2)
    return median, reach * (count + 2) / (count - 2)


def order_rate_bound(count: int, *, above: int, confidence: float = 0.95) -> float:
    """Return the rate that the `above`-th highest of `count` scores keeps in a share `confidence` of draws.

    On average over the draws the rate is above / (count + 1). For any distribution of the scores, the rate of one draw
    is distributed as Beta(above, count − above + 1). The result is a quantile of it, for the highest score
    1 − (1 − confidence)^(1 / count), which is a tolerance bound (Wilks, 1941).
    """
    ways = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(above)]
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        # Probability that fewer than `above` lie above, at this rate.
        parts = (way + k * math.log(rate) + (count - k) * math.log1p(-rate) for k, way in enumerate(ways))
        low, high = (rate, high) if sum(map(math.exp, parts)) > 1 - confidence else (low, rate)
    return high


def robust_threshold(
    scores: Tensor, false_positive_rate: float, *, upper: bool = False, freedom: float = math.inf
) -> float:
    """Return a threshold from scores with some memorized samples: median + quantile · MAD / MAD of Student's law.

    Assumes that less than half of the samples are memorized, and that the others follow Student's distribution, by
    default the normal one (median + z · 1.4826 · MAD).

    Args:
        scores: `(n,)`, n at least 3.
        false_positive_rate: in (0, 1).
        upper: whether the spread is taken from the upper half alone, for scores skewed to the right, such as highest
            scores; then less than a quarter may be memorized.
        freedom: degrees of freedom of Student's distribution.

    Raises:
        ValueError: if n is below 3: of two scores, the lower is the median and has no distance from itself.
    """
    median, scale = robust_location(scores, upper=upper, freedom=freedom)
    return median + scale * student_quantile(false_positive_rate, freedom)


def robust_p_values(scores: Tensor, bulk: Tensor, *, upper: bool = False, freedom: float = math.inf) -> Tensor:
    """Return the lowest rate at which a score is above :func:`robust_threshold` of a bulk `(n,)`, `(m,)` fp64."""
    median, scale = robust_location(bulk, upper=upper, freedom=freedom)
    away = (scores.double() - median) / max(scale, 1e-300)
    return student_tail(away, freedom)


def robust_location(scores: Tensor, *, upper: bool, freedom: float) -> tuple[float, float]:
    """Return the median, and the scale of the Student distribution with the same median absolute deviation."""
    _require(len(scores), 3, "scores to have a bulk")
    median = scores.median()
    distance = (scores - median).abs()
    deviation = (distance[scores > median] if upper and bool((scores > median).any()) else distance).median()
    return float(median), float(deviation) / student_quantile(0.25, freedom)


def student_tail(scores: Tensor, freedom: float) -> Tensor:
    """Return the probability above each score `(m,)`, under Student's distribution of an odd or infinite freedom."""
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
    """Return the score that is exceeded with probability `rate`, which is at most a half."""
    if math.isinf(freedom):
        return math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * rate, dtype=torch.float64)))
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        above = float(student_tail(torch.tensor([middle], dtype=torch.float64), freedom))
        low, high = (middle, high) if above > rate else (low, middle)
    return high


def holm(p_values: Tensor) -> Tensor:
    """Correct p-values for their number, `(n,)`: the family-wise error rate is at most the level compared with.

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
    """Return the direction that best separates two groups (Fisher, 1936), from few positives.

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
    """Return how well :func:`discriminant` separates positives that it was not fitted to.

    Each positive is left out once. With few positives, a direction that was fitted to all of them separates them partly
    by chance, which would favour directions from few samples.

    Args:
        positive: `(k, columns)`, at least two.
        negative: `(n, columns)`, at least two.

    Returns:
        Mean distance of a left-out positive from the negatives' mean, in their standard deviations; around 0 for
        groups without a difference.

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
        raise ValueError(f"at least {fewest} {what} are needed, found {count}")
