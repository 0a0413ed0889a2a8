"""Separation of two classes by scores, thresholds at a false-positive rate, and intervals for small samples.

Scores are not mapped to [0, 1] first, which in single precision would make large scores equal. Invalid input raises
`ValueError`; callers add the remedy for the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.statistics import conformal_threshold

_ROUNDING = 1e-9
"""Keeps `floor(0.05 * 20)` at 1 although 0.05 is not exact in binary."""


def split_classes(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of the positives `(n₁,)` and of the negatives `(n₀,)`, in double precision."""
    if scores.dim() != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels must both be (n,), found {tuple(scores.shape)} and {tuple(labels.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores must be finite")
    truth = labels.bool()
    if truth.all() or not truth.any():
        raise ValueError(f"both classes are needed, found {int(truth.sum())} positives among {truth.numel()}")
    return scores[truth].double(), scores[~truth].double()


def highest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the highest values, in descending order; equal values in order of their index.

    The choice of `torch.topk` among equal values is undefined and differs between devices.

    Args:
        values: `(..., n)`.
        count: number of values; all if there are fewer.

    Returns:
        `(..., min(count, n))` int64, indices along the last dimension.
    """
    return values.argsort(dim=-1, descending=True, stable=True)[..., :count]


def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the probability that a positive scores above a negative, ties counting one half (Mann-Whitney).

    Args:
        scores: `(n,)`, higher for positives.
        labels: `(n,)` bool.

    Returns:
        Scalar in [0, 1], fp64.

    Raises:
        ValueError: if a class is empty or a score is not finite.
    """
    positives, negatives = split_classes(scores, labels)
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives, right=False)
    not_above = torch.searchsorted(ordered, positives, right=True)
    return (below + not_above).double().mean() / (2 * len(ordered))


def true_positive_rate(scores: Tensor, labels: Tensor, *, false_positive_rate: float) -> Tensor:
    """Return the largest share of positives found while at most the given share of negatives is found.

    The rate is never exceeded. Published figures often take the point of the ROC curve nearest to the rate instead
    (which may lie above it), so they can be higher. With fewer than 1 / rate negatives no negative may lie above the
    threshold.

    Args:
        scores: `(n,)`, higher for positives.
        labels: `(n,)` bool.
        false_positive_rate: share of negatives that may score above the threshold, in [0, 1).

    Returns:
        Scalar in [0, 1], fp64.

    Raises:
        ValueError: if a class is empty, a score is not finite or the rate is out of range.
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must be in [0, 1), found {false_positive_rate}")
    positives, negatives = split_classes(scores, labels)
    allowed = math.floor(false_positive_rate * len(negatives) + _ROUNDING)
    threshold = negatives.sort(descending=True).values[allowed]
    return (positives > threshold).double().mean()


def bootstrap_interval(
    statistic: Callable[[Tensor, Tensor], Tensor],
    scores: Tensor,
    labels: Tensor,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile bootstrap interval; each class is resampled separately, so that neither becomes empty.

    A statistic at its limit in the data (an AUROC of 1) is at its limit in every resample. The interval then has no
    width; state the class sizes with it.

    Args:
        statistic: function of `(n,)` scores and `(n,)` labels that returns a scalar.
        scores: `(n,)`.
        labels: `(n,)` bool.
        seed: seed of the resampling; equal seeds give equal results.
        resamples: number of resamples.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper end.

    Raises:
        ValueError: if a class is empty, a score is not finite or the level is out of range.
    """
    _check_level(level)
    positives, negatives = split_classes(scores, labels)
    labels = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))]).bool().to(scores.device)
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):
        resampled = [
            group[torch.randint(len(group), (len(group),), generator=generator).to(group.device)]
            for group in (positives, negatives)
        ]
        values[index] = statistic(torch.cat(resampled), labels)
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def proportion_interval(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson, "Probable Inference", 1927).

    Args:
        k: number of successes.
        n: number of trials; for 0 the interval is (0, 1).
        level: coverage, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: if not `0 <= k <= n`, or the level is out of range.
    """
    _check_level(level)
    if not 0 <= k <= n:
        raise ValueError(f"k must be between 0 and n, found k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    share, shrink = k / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At k = 0 and k = n one end is exact in theory, so rounding must not move it.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def lower_threshold(null_scores: Tensor, rate: float) -> float:
    """Return the threshold below which a further null score falls with probability at most `rate`.

    The mirror image of :func:`~memtrain.functional.statistics.conformal_threshold`: for n exchangeable null scores,
    the k-th smallest with k = ⌊rate · (n + 1)⌋. No distribution is assumed. Compare with a strict `<`.

    Args:
        null_scores: `(n,)` scores of samples without memorization.
        rate: false-positive rate, in (0, 1).

    Raises:
        ValueError: if the rate is out of range, a score is not finite, or n < 1 / rate − 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1), found {rate}")
    if null_scores.dim() != 1 or not torch.isfinite(null_scores).all():
        raise ValueError(f"null_scores must be finite and (n,), found shape {tuple(null_scores.shape)}")
    return -conformal_threshold(-null_scores, rate)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), found {level}")


def mean_with_interval(
    values: Tensor, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict[str, float | list[float] | None]:
    """Return the mean of `(n,)` values with a percentile bootstrap interval; None below two values."""
    if not len(values):
        return {"mean": None, "interval": None}
    found: dict[str, float | list[float] | None] = {"mean": float(values.double().mean()), "interval": None}
    if len(values) > 1:
        drawn = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(seed))
        tail = (1 - level) / 2
        ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
        found["interval"] = torch.quantile(values.double()[drawn].mean(dim=1), ends).tolist()
    return found


def share(yes: Sequence[bool]) -> dict[str, Any]:
    """Count the true ones, and return their share with a Wilson interval."""
    k, n = sum(map(bool, yes)), len(yes)
    return {"k": k, "n": n, "share": k / n if n else None, "interval": list(proportion_interval(k, n))}
