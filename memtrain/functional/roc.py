"""True-positive rates as two published scripts read them off a ROC curve, and AUROC among samples of one stratum.

The scripts take the curve of scikit-learn's `roc_curve`: one point per distinct score, from (0, 0), without the points
that continue a step of the same size. The result of "nearest" depends on the remaining points.

- nearest: the rate at the first point whose false-positive rate is nearest to the target (MemAttn, Ren et al., 2024).
  The target may be exceeded, and with few negatives the nearest point is often (0, 0), which finds nothing.
- strict: the rate at the last point whose false-positive rate is below the target (Wen et al., 2024).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from memtrain.functional.ranking import split_classes

Convention = Literal["nearest", "strict"]


def roc_points(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return false- and true-positive rates `(m,)`, ascending, of the remaining points.

    Args:
        scores: `(n,)`, higher for positives.
        labels: `(n,)` bool.

    Raises:
        ValueError: if a class is empty or a score is not finite.
    """
    positives, negatives = classes = split_classes(scores, labels)
    thresholds = torch.cat(classes).unique().flip(0)
    # Counts at or above each threshold, from the number below it.
    found, wrong = (len(group) - torch.searchsorted(group.sort().values, thresholds) for group in classes)
    if len(thresholds) > 2:
        bends = (wrong.diff(n=2) != 0) | (found.diff(n=2) != 0)
        end = torch.ones(1, dtype=torch.bool, device=bends.device)
        kept = torch.cat([end, bends, end])
        found, wrong = found[kept], wrong[kept]
    zero = torch.zeros(1, dtype=found.dtype, device=found.device)
    return torch.cat([zero, wrong]).double() / len(negatives), torch.cat([zero, found]).double() / len(positives)


def published_rate(scores: Tensor, labels: Tensor, *, false_positive_rate: float, convention: Convention) -> Tensor:
    """Return the true-positive rate at a false-positive rate, by one of the published conventions.

    Args:
        scores: `(n,)`, higher for positives.
        labels: `(n,)` bool.
        false_positive_rate: target, in (0, 1).
        convention: convention, see the module.

    Returns:
        Scalar in [0, 1], fp64.

    Raises:
        ValueError: if a class is empty, a score is not finite or the target is out of range.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must be in (0, 1), found {false_positive_rate}")
    false, true = roc_points(scores, labels)
    if convention == "nearest":
        return true[(false - false_positive_rate).abs().argmin()]
    return true[int((false < false_positive_rate).sum()) - 1]


def stratified_auroc(
    scores: Tensor, labels: Tensor, *, strata: Tensor, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[Tensor, tuple[float, float], int]:
    """Return the probability that a positive scores above a negative of the same stratum, ties counting one half.

    Strata are weighted by their number of pairs. Scores that are constant within strata have an AUROC of exactly 0.5.

    Args:
        scores: `(n,)`, higher for positives.
        labels: `(n,)` bool.
        strata: numbers `(n,)`, equal within a stratum.
        seed: seed of the bootstrap, which resamples each class within each stratum.
        resamples: number of resamples.
        level: coverage of the interval.

    Returns:
        The AUROC, its percentile interval, and the number of pairs; without a pair, NaN, (0, 1) and 0.
    """
    truth, generator = labels.bool(), torch.Generator().manual_seed(seed)
    wins, pairs = torch.zeros(resamples + 1, dtype=torch.float64), 0
    for stratum in strata.unique():
        positives, negatives = (scores[(strata == stratum) & group].double() for group in (truth, ~truth))
        if not len(positives) or not len(negatives):
            continue
        ahead = (positives[:, None] > negatives).double() + (positives[:, None] == negatives).double() / 2
        weights = [
            torch.cat(
                [
                    torch.ones(1, len(group), dtype=torch.float64),
                    torch.zeros(resamples, len(group), dtype=torch.float64).scatter_add(
                        1,
                        torch.randint(len(group), (resamples, len(group)), generator=generator),
                        torch.ones(resamples, len(group), dtype=torch.float64),
                    ),
                ]
            )
            for group in (positives, negatives)
        ]
        wins += ((weights[0] @ ahead) * weights[1]).sum(dim=1)
        pairs += ahead.numel()
    if not pairs:
        return torch.tensor(torch.nan, dtype=torch.float64), (0.0, 1.0), 0
    tail = (1 - level) / 2
    low, high = torch.quantile(wins[1:] / pairs, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return wins[0] / pairs, (low, high), pairs
