"""P-values of a prompt's score among null prompts, which the model cannot have seen, with corrections for many.

Method: a prompt's p-value is (1 + number of the n null prompts that score at least as high) / (1 + n). If the prompt's
score has the distribution of the null scores, it is at most α with a probability of at most α. This holds for any
detector and any n. Matched lengths work in the same way. For each prompt, a regression on the number of tokens is
fitted to the null prompts *and* the prompt, and the residuals are compared. Prompt and null prompts are treated alike,
so the p-value stays exact. Several detectors become one by the Cauchy combination of the ranks within these n + 1
prompts. Its p-value is the rank of the combination among the same n + 1 values, and is exact for any dependence of the
detectors. Two methods correct for many prompts. Holm's bounds the probability of any falsely named prompt. Benjamini
and Hochberg's bounds the expected share of falsely named prompts, and holds for p-values that share null prompts.
Source: conformal p-values, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, and with a
regression inside Lei et al., Distribution-free predictive inference for regression, JASA 2018; under one null, Bates,
Candès, Lei, Romano and Sesia, Testing for outliers with conformal p-values, Annals of Statistics 2023. Cauchy
combination: Liu and Xie, JASA 2020, here as the statistic of a permutation test (Westfall and Young, Resampling-based
multiple testing, 1993). Holm, Scandinavian Journal of Statistics 1979. Benjamini and Hochberg, JRSS B 1995, from scipy.
Cost: that of scoring n null prompts; nothing beyond.
Suggested values: 20 null prompts per prompt, so that one prompt can be named at 5 % after correction
(`suggested_count`).
Cannot: be better than its null prompts. If real prompts score higher than made prompts for another reason than
memorization, p-values are too small; :func:`fit_of_null` shows a large effect of this kind. A small p-value shows that
a prompt stands out, not why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.ranking import proportion_interval

LEVEL = 0.05
"""Level of the statements on q-values."""
FEWEST, MOST = 199, 999
"""Smallest and largest default number of null prompts."""
AT_ONCE = 2**22
"""Largest number of values in memory at once."""


def suggested_count(prompts: int) -> int:
    """Return the number of null prompts that lets one prompt be named, from :data:`FEWEST` to :data:`MOST`."""
    return min(MOST, max(FEWEST, prompts * round(1 / LEVEL)))


def fewest_to_name(prompts: int, null: int) -> int:
    """Return how many prompts have to score above every null prompt before any can be named at :data:`LEVEL`.

    Benjamini and Hochberg multiply the k-th smallest p-value, here 1 / (null + 1), by prompts / k.
    """
    return prompts * round(1 / LEVEL) // (null + 1) + 1


def p_values(score: Tensor, null: Tensor, *, lengths: Tensor, null_lengths: Tensor) -> Tensor:
    """Compute p-values of one score.

    Args:
        score: the finite scores of the prompts, higher for memorized prompts, `(P,)`.
        null: the scores of the null prompts, `(n,)`.
        lengths: the numbers of tokens of the prompts, `(P,)`.
        null_lengths: the numbers of tokens of the null prompts, `(n,)`.

    Returns:
        `(P,)` fp64, from 1 / (n + 1) to 1.
    """
    found = []
    feature, null = _features(score, null)
    for rows in _chunks(len(score), len(null)):
        own, others = _left_by_length(feature[rows], null, lengths[rows], null_lengths)
        found.append((1 + (others >= own[:, None]).sum(dim=1)).double() / (1 + len(null)))
    return torch.cat(found)


def combined_p_values(
    scores: Mapping[str, Tensor], nulls: Mapping[str, Tensor], *, lengths: Tensor, null_lengths: Tensor
) -> Tensor:
    """Compute p-values of several scores together.

    Args:
        scores: the finite scores by detector, higher for memorized prompts, `(P,)`.
        nulls: the scores of the null prompts by detector, `(n,)`.
        lengths: the numbers of tokens of the prompts, `(P,)`.
        null_lengths: the numbers of tokens of the null prompts, `(n,)`.

    Returns:
        `(P,)` fp64.
    """
    count = len(null_lengths)
    features = [_features(score, nulls[name]) for name, score in scores.items()]
    found = []
    for rows in _chunks(len(lengths), count):
        statistic = torch.zeros(len(lengths[rows]), count + 1, dtype=torch.float64)
        for score, null in features:
            own, others = _left_by_length(score[rows], null, lengths[rows], null_lengths)
            pool = torch.cat([own[:, None], others], dim=1)
            ordered = pool.sort(dim=1).values
            below = torch.searchsorted(ordered, pool)
            not_above = torch.searchsorted(ordered, pool, right=True)
            # Equal scores share the middle of their ranks. No share is 0 or 1, where the tangent has no value.
            share_above = 1 - (below + not_above) / (2 * (count + 1))
            statistic += torch.tan((0.5 - share_above) * math.pi)
        # Differences by rounding do not count.
        own, others = statistic[:, :1], statistic[:, 1:]
        found.append((1 + (others >= own - 1e-9 * own.abs().clamp(min=1)).sum(dim=1)).double() / (1 + count))
    return torch.cat(found)


def holm(p: Tensor) -> Tensor:
    """Compute Holm's adjusted p-values of `(P,)`."""
    order = p.argsort(stable=True)
    times = torch.arange(len(p), 0, -1, dtype=torch.float64)
    adjusted = torch.empty_like(p)
    adjusted[order] = (p[order] * times).cummax(dim=0).values.clamp(max=1)
    return adjusted


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Compute Benjamini and Hochberg's adjusted p-values of `(P,)`, called q-values here."""
    from scipy.stats import false_discovery_control

    return torch.as_tensor(false_discovery_control(p.numpy(), method="bh"))


def fit_of_null(p: Tensor) -> dict[str, Any]:
    """Measure whether most prompts look like null prompts.

    Args:
        p: the p-values of the prompts, `(P,)`.

    Returns:
        `above_median`: the number of prompts above the median of the null prompts, of how many, their share and its
        interval. The share is one half if the null fits and few prompts are memorized.
    """
    above, count = int((p < 0.5).sum()), len(p)
    low, high = proportion_interval(above, count)
    return {"above_median": {"k": above, "n": count, "share": above / count, "interval": [low, high]}}


def _features(score: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores in fp64; their logarithms if all are positive, which grow more evenly with the length."""
    own, others = score.double(), null.double()
    positive = bool((own > 0).all()) and bool((others > 0).all())
    return (own.log(), others.log()) if positive else (own, others)


def _left_by_length(score: Tensor, null: Tensor, lengths: Tensor, null_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the slope over lengths, fitted to all n + 1, from scores `(P,)` and null scores `(P, n)`.

    The intercept stays, because it moves all values equally.
    """
    own, others = score, null
    x, many = lengths.double(), null_lengths.double()
    count = len(others) + 1
    mean_x = (many.sum() + x) / count
    mean_y = (others.sum() + own) / count
    off, off_many = x - mean_x, many[None, :] - mean_x[:, None]
    spread = off.square() + off_many.square().sum(dim=1)
    together = off * (own - mean_y) + (off_many * (others[None, :] - mean_y[:, None])).sum(dim=1)
    slope = torch.where(spread > 0, together / spread.clamp(min=1e-12), 0.0)
    return own - slope * off, others[None, :] - slope[:, None] * off_many


def _chunks(prompts: int, null: int) -> list[slice]:
    each = max(1, AT_ONCE // (null + 1))
    return [slice(start, start + each) for start in range(0, prompts, each)]
