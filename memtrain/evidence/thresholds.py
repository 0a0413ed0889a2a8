"""Thresholds and p-values from the highest scores of samples that are not memorized.

With enough held-out samples the threshold is an order statistic (no assumption); with fewer, the normal distribution
has to be assumed, which is said. The bulk of the training samples gives one by median and spread.

Where a sample may be flagged on several levels (:mod:`memtrain.evidence.levels`), each is judged at its part of the
stated rate. A family is visited, and so looked at, more often than what set the threshold: its part is divided by how
much more often, as a highest score grows with the looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import CalibrationError
from memtrain.functional.statistics import (
    conformal_threshold,
    holm,
    normal_p_value,
    normal_threshold,
    robust_threshold,
    samples_needed,
)

MINIMUM_CALIBRATING = 8
"""Held-out samples below which not even the normal distribution helps."""
MINIMUM_BULK = 32
"""Training samples below which they have no bulk."""


CROSSINGS = 4
"""Times as often as by a single look a running mean crosses a high threshold within the visits that it remembers."""


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
            "`reference: false` on MemorizationMonitor: the bulk of the training samples then sets the threshold, from "
            f"{MINIMUM_BULK} of them; fewer are recorded and never flagged",
        )
    return "order statistic" if count >= samples_needed(false_positive_rate) else "normal distribution"


def heldout_threshold(highest: Iterable[float] | Tensor, false_positive_rate: float) -> float | None:
    """Threshold from the highest score that each held-out sample ever reached; None from too few of them."""
    scores = highest if isinstance(highest, Tensor) else torch.tensor(list(highest), dtype=torch.float64)
    if len(scores) >= samples_needed(false_positive_rate):
        return conformal_threshold(scores, false_positive_rate)
    if len(scores) >= MINIMUM_CALIBRATING:
        return normal_threshold(scores, false_positive_rate)
    return None


def bulk_threshold(peaks: Tensor, false_positive_rate: float) -> float | None:
    """Threshold from the highest scores `(n,)` of the bulk of the training samples; None from too few of them."""
    return robust_threshold(peaks, false_positive_rate, upper=True) if len(peaks) >= MINIMUM_BULK else None


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class SharedRate:
    """Thresholds at parts of the stated rate, from the scores that set the threshold last.

    Attributes:
        heldout: `(n,)` highest scores of held-out samples.
        heldout_rate: at which they set the threshold; 0 if they did not.
        bulk: `(n,)` highest scores of the bulk.
        bulk_rate: at which they did; 0 if they did not.
        looks: independent looks at a sample whose score set it.
    """

    heldout: Tensor = field(default_factory=_none)
    heldout_rate: float = 0.0
    bulk: Tensor = field(default_factory=_none)
    bulk_rate: float = 0.0
    looks: float = 1.0
    _known: dict[float, float] = field(default_factory=dict)

    def at(self, threshold: float, *, parts: int, looks: float = 1.0) -> float:
        """The threshold at the stated rate divided by `parts`, and by how much more often a family was looked at.

        Args:
            threshold: at the stated rate; infinite until there is one.
            parts: levels among which the rate is shared.
            looks: independent looks at the family so far.
        """
        more = (1 + CROSSINGS * (looks - 1)) / (1 + CROSSINGS * (self.looks - 1))
        # In powers of two, upwards: as strict or stricter, and few to be known.
        divisor = parts * 2.0 ** math.ceil(math.log2(max(1.0, more)))
        if divisor == 1 or not math.isfinite(threshold):
            return threshold
        if divisor not in self._known:
            held = heldout_threshold(self.heldout, self.heldout_rate / divisor) if self.heldout_rate else None
            bulk = bulk_threshold(self.bulk, self.bulk_rate / divisor) if self.bulk_rate else None
            self._known[divisor] = max((one for one in (held, bulk) if one is not None), default=-math.inf)
        # An order statistic at the stated rate may lie above what the normal distribution says of a part of it.
        return max(threshold, self._known[divisor])

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {name: getattr(self, name) for name in ("heldout", "heldout_rate", "bulk", "bulk_rate", "looks")}


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
