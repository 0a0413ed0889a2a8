"""Thresholds and p-values from the highest scores of samples that are not memorized.

With enough held-out samples the threshold is an order statistic (no assumption); with fewer, the normal distribution
has to be assumed, which is said. The bulk of the training samples gives one by median and spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from memtrain.errors import CalibrationError
from memtrain.functional.statistics import (
    MINIMUM_CALIBRATING,
    conformal_threshold,
    holm,
    normal_p_value,
    normal_threshold,
    robust_threshold,
    samples_needed,
)

MINIMUM_BULK = 32
"""Training samples below which they have no bulk."""


def heldout_method(count: int, false_positive_rate: float) -> str:
    """How the threshold will be set from `count` held-out samples: `order statistic` or `normal distribution`.

    Raises:
        CalibrationError: if there are fewer than can say anything.
    """
    if count < MINIMUM_CALIBRATING:
        raise CalibrationError(
            f"{count} held-out samples cannot calibrate a false-positive rate of {false_positive_rate}",
            expected=f"at least {MINIMUM_CALIBRATING}, or {samples_needed(false_positive_rate)} to do without "
            "assuming a normal distribution",
            remedy="raise data.init_args.heldout_fraction or name a heldout_path; of too few images for either, set "
            "data.init_args.heldout to edited: edited copies of the training images stand in for held-out ones",
        )
    return "order statistic" if count >= samples_needed(false_positive_rate) else "normal distribution"


def heldout_threshold(highest: Iterable[float], false_positive_rate: float) -> float | None:
    """Threshold from the highest score that each held-out sample ever reached; None from too few of them."""
    scores = torch.tensor(list(highest), dtype=torch.float64)
    if len(scores) >= samples_needed(false_positive_rate):
        return conformal_threshold(scores, false_positive_rate)
    if len(scores) >= MINIMUM_CALIBRATING:
        return normal_threshold(scores, false_positive_rate)
    return None


def bulk_threshold(peaks: Tensor, false_positive_rate: float) -> float | None:
    """Threshold from the highest scores `(n,)` of the bulk of the training samples; None from too few of them."""
    return robust_threshold(peaks, false_positive_rate, upper=True) if len(peaks) >= MINIMUM_BULK else None


def heldout_null(highest: Iterable[float]) -> tuple[float, float]:
    """Mean and deviation of a further highest score when nothing is memorized; NaN from too few."""
    null = torch.tensor(list(highest), dtype=torch.float64)
    if len(null) < MINIMUM_CALIBRATING:
        return math.nan, math.nan
    return float(null.mean()), float(null.std()) * math.sqrt(1 + 1 / len(null))


def bulk_null(peaks: Iterable[float]) -> tuple[float, float]:
    """The same from the highest scores of training samples, by median and spread."""
    null = torch.tensor(list(peaks), dtype=torch.float64)
    if len(null) < MINIMUM_BULK:
        return math.nan, math.nan
    mean = float(null.median())
    return mean, 1.4826 * float((null - mean).abs().median())


def corrected_p_values(keys: Sequence[str], peaks: Mapping[str, float], null: tuple[float, float]) -> Tensor:
    """p-values of samples' highest scores under a normal null, corrected for the number of samples, `(B,)`.

    Args:
        keys: B keys.
        peaks: highest scores of all samples that have one.
        null: mean and deviation when nothing is memorized.

    Returns:
        NaN for samples without a highest score, and for all without a known deviation above 0.
    """
    mean, deviation = null
    if not deviation > 0:
        return torch.full((len(keys),), math.nan, dtype=torch.float64)
    names = list(peaks)
    scores = torch.tensor([peaks[key] for key in names], dtype=torch.float64)
    corrected = holm(normal_p_value(scores, mean=mean, deviation=deviation))
    known = dict(zip(names, corrected.tolist(), strict=True))
    return torch.tensor([known.get(key, math.nan) for key in keys], dtype=torch.float64)
