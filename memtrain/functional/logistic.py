"""Logistic regression with an L2 penalty, and folds to evaluate it on samples that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memtrain.functional.keyed_draws import hashed


def fit_logistic(features: Tensor, labels: Tensor, *, penalty: float = 1.0) -> Tensor:
    """Minimise the sum of log losses plus `penalty / 2` times the squared weights, by Newton's method.

    Args:
        features: standardised features `(n, d)`.
        labels: labels `(n,)` bool.
        penalty: weight of the penalty, above 0; the intercept is not penalised.

    Returns:
        `(d + 1,)` fp64, the intercept last.

    Raises:
        ValueError: if a class is empty or the penalty is not positive.
    """
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, found {penalty}")
    truth = labels.double()
    if not 0 < float(truth.mean()) < 1:
        raise ValueError("both classes are needed")
    design = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    ridge = torch.full((design.shape[1],), penalty, dtype=torch.float64)
    ridge[-1] = 0.0

    def objective(weights: Tensor) -> Tensor:
        logits = design @ weights
        return (
            torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
            + (ridge * weights.square()).sum() / 2
        )

    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    weights[-1] = torch.logit(truth.mean())
    for _ in range(100):
        share = torch.sigmoid(design @ weights)
        slope = design.T @ (share - truth) + ridge * weights
        if slope.abs().max() < 1e-9 * len(truth):
            break
        curvature = design.T @ (design * (share * (1 - share))[:, None]) + torch.diag(ridge + 1e-12)
        step, length = torch.linalg.solve(curvature, slope), 1.0
        while objective(weights - length * step) > objective(weights) and length > 1e-6:
            length /= 2
        weights = weights - length * step
    return weights


def logits(features: Tensor, weights: Tensor) -> Tensor:
    """Return the log odds `(n,)` of features `(n, d)` under the weights `(d + 1,)` of :func:`fit_logistic`."""
    return features.double() @ weights[:-1] + weights[-1]


def stratified_folds(labels: Tensor, keys: Sequence[str], *, folds: int, seed: int = 0) -> Tensor:
    """Return a fold `(n,)` for every sample: each class is spread evenly, and equal keys of a class stay together.

    A sample's fold depends on the keys and the seed, not on the order of samples.

    Args:
        labels: `(n,)` bool.
        keys: n names.
        folds: number of folds.
        seed: seed of the order of keys.
    """
    fold = torch.empty(len(keys), dtype=torch.long)
    for group in (True, False):
        own = [row for row, truth in enumerate(labels.bool().tolist()) if truth == group]
        order = sorted({keys[row] for row in own}, key=lambda key: hashed(f"{seed}:{key}"))
        place = {key: index % folds for index, key in enumerate(order)}
        for row in own:
            fold[row] = place[keys[row]]
    return fold


def out_of_fold(features: Tensor, labels: Tensor, *, fold: Tensor, penalty: float = 1.0) -> Tensor:
    """Compute log odds `(n,)` of each sample from a fit to the other folds, standardised by their mean and deviation.

    Args:
        features: features `(n, d)`.
        labels: labels `(n,)` bool.
        fold: fold `(n,)` of each sample; the other folds must contain both classes.
        penalty: penalty of :func:`fit_logistic`.

    Raises:
        ValueError: if they do not contain both, or the penalty is not positive.
    """
    found = torch.empty(len(features), dtype=torch.float64)
    for number in fold.unique():
        inside = fold == number
        others = features[~inside].double()
        if not 0 < float(labels[~inside].double().mean()) < 1:
            raise ValueError(
                f"both classes are needed outside of each fold; outside of {int(number)} there is one at most"
            )
        mean, deviation = others.mean(dim=0), others.std(dim=0, correction=0)
        scale = torch.where(deviation > 0, deviation, 1.0)
        weights = fit_logistic((others - mean) / scale, labels[~inside], penalty=penalty)
        found[inside] = logits((features[inside].double() - mean) / scale, weights)
    return found
