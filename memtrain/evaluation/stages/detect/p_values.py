"""How unlikely a prompt's score is among prompts that the model cannot have seen: p-values, and what many allow.

Method: a prompt's p-value is (1 + number of the n null prompts that score at least as high) / (1 + n). If the prompt's
score came from where those of the null prompts come from, it is at most α with probability at most α, for any detector
and any n. Lengths are matched within that argument: for each prompt a regression on the number of tokens is fitted to
the null prompts *and* the prompt, and what it leaves of each is compared, so that prompt and null prompts are treated
alike and the p-value stays exact. Several detectors become one by the Cauchy combination of the ranks within those n +
1 prompts, whose own p-value is read off the same n + 1 values: whatever the detectors have in common, it is exact too.
Many prompts are corrected for by Holm (no prompt falsely named, with the stated probability) and by Benjamini-Hochberg
(the expected share of falsely named prompts), which holds for p-values that share null prompts.
Source: conformal p-values, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, and with a
regression inside Lei et al., Distribution-free predictive inference for regression, JASA 2018; under one null, Bates,
Candès, Lei, Romano and Sesia, Testing for outliers with conformal p-values, Annals of Statistics 2023. Cauchy
combination: Liu and Xie, JASA 2020, here as the statistic of a permutation test (Westfall and Young, Resampling-based
multiple testing, 1993). Holm, Scandinavian Journal of Statistics 1979. Benjamini and Hochberg, JRSS B 1995, from scipy.
Cost: that of scoring n null prompts; nothing beyond.
Suggested values: n of 20 per prompt, so that one prompt alone can be named at 5 % after correction (`suggested_count`).
Cannot: be better than its null prompts. Whatever lets real prompts score higher than made ones, other than having been
seen, makes p-values too small; :func:`fit_of_null` shows it where it is large. A small p-value says that a prompt
stands out, not why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.ranking import proportion_interval

LEVEL = 0.05
"""Of the statements about q-values."""
FEWEST, MOST = 199, 999
"""Null prompts made where their number is not said: at least, at most."""
AT_ONCE = 2**22
"""Numbers held at once."""


def suggested_count(prompts: int) -> int:
    """Null prompts for so many prompts: as many as let one alone be named, from :data:`FEWEST` to :data:`MOST`."""
    return min(MOST, max(FEWEST, prompts * round(1 / LEVEL)))


def fewest_to_name(prompts: int, null: int) -> int:
    """How many of so many prompts have to lie above every null prompt before any is named at :data:`LEVEL`.

    Benjamini and Hochberg multiply the k-th smallest p-value, here 1 / (null + 1), by prompts / k.
    """
    return prompts * round(1 / LEVEL) // (null + 1) + 1


def p_values(score: Tensor, null: Tensor, *, lengths: Tensor, null_lengths: Tensor) -> Tensor:
    """Of one score.

    Args:
        score: `(P,)`, higher for memorized prompts, finite.
        null: `(n,)`, of the null prompts.
        lengths: `(P,)` tokens.
        null_lengths: `(n,)`.

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
    """Of several scores together.

    Args:
        scores: per detector `(P,)`, higher for memorized prompts, finite.
        nulls: per detector `(n,)`.
        lengths: `(P,)` tokens.
        null_lengths: `(n,)`.

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
            # Equal scores share the middle of their ranks; none is 0 or 1, where the tangent has no value.
            share_above = 1 - (below + not_above) / (2 * (count + 1))
            statistic += torch.tan((0.5 - share_above) * math.pi)
        # Sums of the same terms in one order; a hair is no difference.
        own, others = statistic[:, :1], statistic[:, 1:]
        found.append((1 + (others >= own - 1e-9 * own.abs().clamp(min=1)).sum(dim=1)).double() / (1 + count))
    return torch.cat(found)


def holm(p: Tensor) -> Tensor:
    """Holm's adjusted p-values of `(P,)`."""
    order = p.argsort(stable=True)
    times = torch.arange(len(p), 0, -1, dtype=torch.float64)
    adjusted = torch.empty_like(p)
    adjusted[order] = (p[order] * times).cummax(dim=0).values.clamp(max=1)
    return adjusted


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Benjamini and Hochberg's adjusted p-values of `(P,)`, called q-values here."""
    from scipy.stats import false_discovery_control

    return torch.as_tensor(false_discovery_control(p.numpy(), method="bh"))


def fit_of_null(p: Tensor) -> dict[str, Any]:
    """Whether most prompts look like null prompts.

    Args:
        p: `(P,)` p-values of the prompts.

    Returns:
        `above_median`: how many prompts score above the middle of the null prompts, of how many, their share and its
        interval. Half of them do where the null fits and few prompts are memorized.
    """
    above, count = int((p < 0.5).sum()), len(p)
    low, high = proportion_interval(above, count)
    return {"above_median": {"k": above, "n": count, "share": above / count, "interval": [low, high]}}


def _features(score: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in fp64; their logarithms, which grow more evenly with the length, where all of both are positive."""
    own, others = score.double(), null.double()
    positive = bool((own > 0).all()) and bool((others > 0).all())
    return (own.log(), others.log()) if positive else (own, others)


def _left_by_length(score: Tensor, null: Tensor, lengths: Tensor, null_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(P,)` and, for each of them, null scores `(P, n)` less the slope that fits all n + 1 of them.

    The intercept is left in, because it moves all alike.
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
