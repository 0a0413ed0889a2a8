"""Several detectors as one: a logistic regression of their scores, judged on prompts it was not fitted on.

Method: the log of each detector's score (the score itself where one is not positive), standardised, goes into a
logistic regression with an L2 penalty; k folds, both classes dealt out evenly, equal prompts together. Every figure is
of out-of-fold scores. Beside it stands the best single detector, chosen and scaled in the same way on the other folds
alone, so that choosing the best of many is not rewarded either.
Cost: none beyond the detectors.
Suggested values: 5 folds, penalty 1.
Cannot: be fitted without prompts whose truth is known, at least k of either kind; say anything about prompts unlike
them (a file of captions in one style and others in another teaches the style); or be better than its detectors where
one of them is perfect.
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
    """Why nothing can be fitted and judged on these prompts; None if it can."""
    truth = labels.bool().tolist()
    fewest = min(len({key for key, one in zip(keys, truth, strict=True) if one == group}) for group in (True, False))
    return None if fewest >= folds else f"{fewest} different prompts of one kind are fewer than {folds} folds"


def as_feature(score: Tensor) -> Tensor:
    """The log of scores `(n,)` that are all positive, others as they are; fp64."""
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
    """Fit, and compare with the best single detector.

    Args:
        scores: per detector `(n,)`, finite.
        labels: `(n,)` bool.
        keys: n prompts.
        folds: k; :func:`reason_against` must have no objection.
        penalty: of the regression.
        seed: of the folds.

    Returns:
        Out-of-fold log odds `(n,)`, and what is to be said of them: detectors, folds, `best_single` with its AUROC, how
        often each was chosen, and the difference in AUROC with an interval over prompts.
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
        # In either direction, as the regression too may turn a detector round.
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
