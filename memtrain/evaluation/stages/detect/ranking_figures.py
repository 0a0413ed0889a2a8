"""Figures of how well a score separates memorized prompts from others, in the conventions of published papers.

- AUROC with a bootstrap interval, over all prompts and among prompts of the same length only;
- true-positive rates at false-positive rates of 1 and 3 %, at the point nearest to the rate (MemAttn) and strictly
  below the rate (Wen et al.), which differ with few prompts;
- a calibration curve: out-of-fold probabilities of a logistic regression on the score, in ten bins, against the share
  that is memorized. The probabilities hold for the share of memorized prompts in the file.

Prompts of the same length are matched by strata: a memorized prompt is compared with the others of exactly as many
tokens, and all such pairs count alike. The AUROC of the length itself is then 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from memtrain.evaluation.stages.detect.combined import FOLDS, as_feature, reason_against
from memtrain.functional.logistic import out_of_fold, stratified_folds
from memtrain.functional.ranking import auroc, bootstrap_interval, proportion_interval
from memtrain.functional.roc import Convention, published_rate, stratified_auroc

RATES = (0.01, 0.03)
"""False-positive rates at which true-positive rates are published."""
BINS = 10


def ranking_figures(
    score: Tensor,
    truth: Tensor,
    *,
    lengths: Tensor | None = None,
    keys: Sequence[str] | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Figures of one score.

    Args:
        score: the scores, higher for memorized prompts, `(P,)`.
        truth: the known truth, `(P,)` bool.
        lengths: the numbers of tokens of the prompts, for the figures among prompts of one length, `(P,)`.
        keys: the P prompts, for the calibration curve.
        resamples: the number of resamples of bootstrap intervals.

    Returns:
        `auroc`, `interval`, `true_positive_rates`, `notes`, and with the arguments `same_length` and `calibration`. If
        there are no figures, None and a `reason`.
    """
    if not bool(torch.isfinite(score).all()):
        count = int((~torch.isfinite(score)).sum())
        return {"auroc": None, "interval": None, "reason": f"{count} of {len(score)} scores are not finite"}
    if bool(truth.all()) or not bool(truth.any()):
        found = f"{int(truth.sum())} of {len(truth)} prompts are memorized, and both kinds are needed"
        return {"auroc": None, "interval": None, "reason": found}
    value, interval = float(auroc(score, truth)), _interval(auroc, score, truth, resamples)
    negatives, notes = int((~truth).sum()), []
    if interval[0] == interval[1]:
        notes.append(
            "The interval has no width, because every resample of a perfect order is perfect. This does not mean "
            f"certainty with {int(truth.sum())} memorized and {negatives} other prompts."
        )
    rates = []
    for rate in RATES:
        entry: dict[str, Any] = {"false_positive_rate": rate}
        for convention in get_args(Convention):
            rated = _rated(rate, convention)
            entry[convention] = float(rated(score, truth))
            entry[f"{convention}_interval"] = _interval(rated, score, truth, resamples)
        rates.append(entry)
        if negatives < 1 / rate:
            notes.append(
                f"With {negatives} prompts that are not memorized, a false-positive rate of {rate:.0%} allows no false "
                f"positive."
            )
    figures = {"auroc": value, "interval": interval, "true_positive_rates": rates, "notes": notes}
    if lengths is not None:
        figures["same_length"] = _same_length(score, truth, lengths, resamples)
    if keys is not None:
        figures["calibration"] = _calibration(score, truth, keys)
    return figures


def _rated(rate: float, convention: Literal["nearest", "strict"]) -> Any:
    def rated(score: Tensor, truth: Tensor) -> Tensor:
        return published_rate(score, truth, false_positive_rate=rate, convention=convention)

    return rated


def _interval(statistic: Any, score: Tensor, truth: Tensor, resamples: int) -> list[float]:
    return list(bootstrap_interval(statistic, score, truth, seed=0, resamples=resamples))


def _same_length(score: Tensor, truth: Tensor, lengths: Tensor, resamples: int) -> dict[str, Any]:
    value, interval, pairs = stratified_auroc(score, truth, strata=lengths, seed=0, resamples=resamples)
    if not pairs:
        return {"auroc": None, "reason": "no memorized prompt has the same number of tokens as another prompt"}
    shared = set(lengths[truth].tolist()) & set(lengths[~truth].tolist())
    inside = torch.tensor([length in shared for length in lengths.tolist()])
    return {
        "auroc": float(value),
        "interval": list(interval),
        "memorized": int((inside & truth).sum()),
        "others": int((inside & ~truth).sum()),
        "pairs": pairs,
        "lengths": len(shared),
    }


def _calibration(score: Tensor, truth: Tensor, keys: Sequence[str]) -> dict[str, Any]:
    reason = reason_against(truth, keys)
    if reason is not None:
        return {"bins": None, "reason": reason}
    fold = stratified_folds(truth, keys, folds=FOLDS)
    probability = torch.sigmoid(out_of_fold(as_feature(score)[:, None], truth, fold=fold))
    place = (probability * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            found, count = int(truth[inside].sum()), int(inside.sum())
            bins.append(
                {
                    "from": number / BINS,
                    "to": (number + 1) / BINS,
                    "prompts": count,
                    "predicted": float(probability[inside].mean()),
                    "observed": found / count,
                    "interval": list(proportion_interval(found, count)),
                }
            )
    return {"bins": bins, "brier": float((probability - truth.double()).square().mean()), "folds": FOLDS}
