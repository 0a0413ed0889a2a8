"""Several detectors as one: a logistic regression of their scores, judged on prompts outside its fit.

Method: the standardised log of each detector's score goes into a logistic regression with an L2 penalty (the score
itself, if one is not positive). There are k folds, with both classes spread evenly and equal prompts together. Every
figure uses out-of-fold scores. The best single detector is reported for comparison. It is chosen and scaled in the same
way on the other folds only, so that the choice of the best of many gives no advantage.
Cost: none beyond the detectors.
Suggested values: 5 folds, penalty 1.
Cannot: be fitted without prompts with known truth, at least k of each kind. It does not apply to other kinds of
prompts: if memorized and other captions differ in style, it learns the style. It cannot be better than a perfect
detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.logistic import out_of_fold, stratified_folds
from memtrain.functional.ranking import auroc, bootstrap_interval

FOLDS = 5
"""Suggested number of folds."""


def reason_against(labels: Tensor, keys: Sequence[str], *, folds: int = FOLDS) -> str | None:
    """Return why no regression can be fitted and judged on these prompts; None if it can."""
    truth = labels.bool().tolist()
    fewest = min(len({key for key, one in zip(keys, truth, strict=True) if one == group}) for group in (True, False))
    return None if fewest >= folds else f"{fewest} different prompts of one kind are fewer than {folds} folds"


def as_feature(score: Tensor) -> Tensor:
    """Return the log of scores `(n,)` if all are positive, else the scores, in fp64."""
    return score.double().log() if bool((score > 0).all()) else score.double()


def combine(
    scores: Mapping[str, Tensor],
    labels: Tensor,
    keys: Sequence[str],
    *,
    folds: int = FOLDS,
    penalty: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Any]]:
    """Fit the regression, and compare it with the best single detector.

    Args:
        scores: the finite scores by detector, `(n,)`.
        labels: the known truth, `(n,)` bool.
        keys: the n prompts.
        folds: the number k of folds, for which :func:`reason_against` returns None.
        penalty: the L2 penalty of the regression.
        seed: the seed of the folds.

    Returns:
        Out-of-fold log odds `(n,)`, and their figures: detectors, folds, penalty, and `best_single` with its AUROC, the
        counts of chosen detectors, and the difference in AUROC with an interval over prompts.
    """
    truth = labels.bool()
    fold = stratified_folds(truth, keys, folds=folds, seed=seed)
    features = {name: as_feature(score) for name, score in scores.items()}
    together = out_of_fold(torch.stack(list(features.values()), dim=1), truth, fold=fold, penalty=penalty)
    alone = {
        name: out_of_fold(feature[:, None], truth, fold=fold, penalty=penalty) for name, feature in features.items()
    }
    single, chosen = torch.empty_like(together), dict.fromkeys(features, 0)
    for number in range(folds):
        inside = fold == number
        # In either direction, because the regression can also reverse a detector.
        best = max(features, key=lambda name: abs(float(auroc(features[name][~inside], truth[~inside])) - 0.5))
        single[inside] = alone[best][inside]
        chosen[best] += 1

    def difference(rows: Tensor, ignored: Tensor) -> Tensor:
        index = rows.long()
        return auroc(together[index], truth[index]) - auroc(single[index], truth[index])

    rows = torch.arange(len(truth))
    low, high = bootstrap_interval(difference, rows.double(), truth, seed=0)
    return together, {
        "detectors": list(features),
        "folds": folds,
        "penalty": penalty,
        "best_single": {
            "auroc": float(auroc(single, truth)),
            "chosen": {name: count for name, count in chosen.items() if count},
            "difference": float(difference(rows, truth)),
            "interval": [low, high],
        },
    }
