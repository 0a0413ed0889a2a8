"""Shares of generations, with intervals that allow for the similarity of generations of one prompt.

Method: K generations of a prompt are not K independent trials. For a memorized prompt nearly all are copies, for
another prompt none. The interval is Wilson's, with the effective number of trials n / (1 + (K − 1) ρ). ρ is the
correlation within prompts, estimated by the analysis of variance and kept in [0, 1].
Source: Kish, "Survey Sampling", 1965, for design effects. For effective sample sizes in intervals of proportions, Korn
and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
data", Survey Methodology 1998.
Direction: higher similarity means a copy. A similarity strictly above a threshold counts as a copy, as for conformal
thresholds.
Cannot: estimate ρ if all generations or none are copies, or if there is one prompt. The number of trials is then the
number of prompts, which gives the widest interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.ranking import proportion_interval


def copies(similarity: Tensor, threshold: float) -> Tensor:
    """Return whether each similarity counts as a copy, bool of the same shape; NaN never does."""
    return similarity > threshold


def counted(k: int, n: int, *, name: str = "reproduced", level: float = 0.95) -> dict[str, Any]:
    """Return `n`, `k` under `name`, `share` (None if n is 0) and Wilson's `interval` for independent trials."""
    return {"n": n, name: k, "share": k / n if n else None, "interval": list(proportion_interval(k, n, level=level))}


def effective_trials(yes: Tensor) -> float:
    """Return the effective number of independent trials of `yes` `(P, K)` bool, from P to P K."""
    prompts, seeds = yes.shape
    values = yes.double()
    total = values.mean()
    if seeds == 1 or prompts < 2 or total in (0.0, 1.0):
        return float(prompts)
    means = values.mean(dim=1)
    between = seeds * (means - total).square().sum() / (prompts - 1)
    within = (values - means[:, None]).square().sum() / (prompts * (seeds - 1))
    spread = between + (seeds - 1) * within
    rho = float(((between - within) / spread).clamp(0, 1)) if spread > 0 else 1.0
    return prompts * seeds / (1 + (seeds - 1) * rho)


def share_of_generations(yes: Tensor, *, name: str = "copies", level: float = 0.95) -> dict[str, Any]:
    """Count the generations for which a condition holds.

    Args:
        yes: whether the condition holds for each generation, `(P, K)` bool.
        name: the name of the count in the result.
        level: the coverage of the interval.

    Returns:
        `n` (generations), `prompts`, the count under `name`, `share`, `interval` and `effective_n` (independent
        trials).
    """
    n, k = yes.numel(), int(yes.sum())
    if not n:
        return {"n": 0, "prompts": len(yes), name: 0, "share": None, "interval": [0.0, 1.0], "effective_n": 0.0}
    trials = effective_trials(yes)
    interval = wilson(k / n, trials, level=level)
    return {"n": n, "prompts": len(yes), name: k, "share": k / n, "interval": interval, "effective_n": trials}


def wilson(share: float, trials: float, *, level: float = 0.95) -> list[float]:
    """Return Wilson's interval of a share for a number of trials that need not be whole."""
    z = 2**0.5 * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    shrink = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return [0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)]


def names_of(pictures: Sequence[str | None]) -> dict[str, list[int]]:
    """Return the rows of each picture's prompts, in order of first appearance; prompts without one are left out."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(pictures):
        if name is not None:
            rows.setdefault(name, []).append(row)
    return rows
