"""Thresholds and p-values from the highest scores of samples that are not memorized.

With enough held-out samples the threshold is an order statistic, without an assumption. With fewer, the highest scores
are extended by the heaviest tail that is assumed to occur, and the run reports this. The bulk of the training samples
gives a threshold by median and spread, and promises nothing. :mod:`memtrain.evidence.promise` has the promised rates
and the rates in simulation.

If a sample has several levels (:mod:`memtrain.evidence.levels`), each level is judged at its part of the stated rate. A
family has more visits, and so more looks, than the samples that set the threshold. Its part is divided by this factor,
because a highest score grows with the number of looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import CalibrationError
from memtrain.functional.statistics import (
    MINIMUM_CALIBRATING,
    conformal_threshold,
    holm,
    robust_p_values,
    robust_threshold,
    samples_needed,
    tail_p_values,
    tail_threshold,
)

ORDER, TAIL, BULK = "order statistic", "tail bound", "bulk"
"""The bases of a threshold."""

MINIMUM_BULK = 32
"""Least number of training samples for a bulk."""
BULK_FREEDOM = 5.0
"""Degrees of freedom of the assumed distribution of highest scores, if only the bulk calibrates. With the normal
distribution, which an early bulk keeps, twice to seven times the stated rate were flagged in simulation."""


CROSSINGS = 4
"""Factor by which a running mean crosses a high threshold more often, within its remembered visits, than in one look.
"""


def require_rate(false_positive_rate: float) -> None:
    """Refuse an impossible share of ordinary samples."""
    if not 0 < false_positive_rate <= 0.5:
        raise CalibrationError(
            f"false_positive_rate={false_positive_rate}", expected="above 0, at most 0.5", remedy="set 0.01"
        )


def heldout_method(count: int, false_positive_rate: float) -> str:
    """Return the basis of a threshold from `count` held-out samples: `order statistic` or `tail bound`.

    Raises:
        CalibrationError: if there are too few for a threshold.
    """
    if count < MINIMUM_CALIBRATING:
        raise CalibrationError(
            f"{count} held-out samples cannot calibrate a false-positive rate of {false_positive_rate}",
            expected=f"at least {MINIMUM_CALIBRATING}, or {samples_needed(false_positive_rate)} without an assumption "
            "on the tail of their scores",
            remedy="raise data.init_args.heldout_fraction or set a heldout_path; with few images, set "
            "data.init_args.heldout to edited, which holds out edited copies of the training images",
        )
    return ORDER if count >= samples_needed(false_positive_rate) else TAIL


def heldout_threshold(highest: Iterable[float] | Tensor, false_positive_rate: float) -> float | None:
    """Return the threshold from each held-out sample's highest score; None if there are too few."""
    scores = highest if isinstance(highest, Tensor) else torch.tensor(list(highest), dtype=torch.float64)
    if len(scores) >= samples_needed(false_positive_rate):
        return conformal_threshold(scores, false_positive_rate)
    if len(scores) >= MINIMUM_CALIBRATING:
        return tail_threshold(scores, false_positive_rate)
    return None


class Spending:
    """A threshold that held-out samples set again and again, at a rate for the whole run.

    A sample is flagged if it is above the threshold at any moment, and the highest samples change. A held-out sample
    that was once among the highest k would have been flagged by the others. So the rate is spent. The threshold leaves
    out the highest samples until it has named as many of them as the rate allows, and after that it leaves out no
    others. If another sample leads then, the threshold lies above all of them, at the beginning of the tail bound.
    Without this, 1.3 to 1.6 times the stated 1 and 5 % were flagged in simulation.

    Attributes:
        named: keys of the held-out samples that would have been flagged so far.
    """

    def __init__(self) -> None:
        self.named: set[str] = set()

    def threshold(self, name: Callable[[int], str], scores: Tensor, false_positive_rate: float) -> float | None:
        """Return the current threshold; None with too few samples.

        Args:
            name: function from a place in `scores` to the key of the held-out sample.
            scores: highest score of each sample so far, `(n,)`.
            false_positive_rate: the rate of the whole run.
        """
        if len(scores) < samples_needed(false_positive_rate) or len(scores) < MINIMUM_CALIBRATING:
            return heldout_threshold(scores, false_positive_rate)
        allowed = math.floor(false_positive_rate * (len(scores) + 1) + 1e-9)
        order, above = scores.argsort(descending=True, stable=True)[:allowed].tolist(), 0
        for row in order:
            if name(row) not in self.named and len(self.named) >= allowed:
                break
            self.named.add(name(row))
            above += 1
        return float(scores[order[above - 1]]) if above else tail_threshold(scores, 1 / (len(scores) + 1))


def apart_from_themselves(count: int) -> float:
    """Return the factor by which root-mean-square scores of `count` held-out samples are too low.

    They are compared with a mean that they are part of. Their squared distances from it are 1 − 1/n of the variance
    between samples, and those of other samples are 1 + 1/n. For signed scores, only the spread differs in this way.
    """
    return math.sqrt((count + 1) / (count - 1)) if count > 1 else 1.0


def bulk_threshold(peaks: Tensor, false_positive_rate: float, *, freedom: float = math.inf) -> float | None:
    """Return the threshold from the highest scores `(n,)` of the bulk; None if there are too few.

    Args:
        peaks: highest scores.
        false_positive_rate: the rate, in (0, 1).
        freedom: degrees of freedom of the assumed distribution; by default the normal distribution.
    """
    if len(peaks) < MINIMUM_BULK:
        return None
    return robust_threshold(peaks, false_positive_rate, upper=True, freedom=freedom)


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class SharedRate:
    """Thresholds at parts of the stated rate, from the scores of the last threshold.

    Attributes:
        heldout: highest scores of held-out samples, `(n,)`.
        heldout_rate: rate at which they set the threshold; 0 if they did not.
        bulk: highest scores of the bulk, `(n,)`.
        bulk_rate: rate at which the bulk set the threshold; 0 if it did not.
        looks: number of independent looks at a sample whose score set the threshold.
        freedom: degrees of freedom of the assumed distribution of the bulk.
    """

    heldout: Tensor = field(default_factory=_none)
    heldout_rate: float = 0.0
    bulk: Tensor = field(default_factory=_none)
    bulk_rate: float = 0.0
    looks: float = 1.0
    freedom: float = math.inf
    _known: dict[float, float] = field(default_factory=dict)

    def at(self, threshold: float, *, parts: int, looks: float = 1.0) -> float:
        """Return the threshold at the stated rate divided by `parts` and by the larger number of looks at a family.

        Args:
            threshold: threshold at the stated rate; infinite without one.
            parts: number of levels that share the rate.
            looks: number of independent looks at the family so far.
        """
        more = (1 + CROSSINGS * (looks - 1)) / (1 + CROSSINGS * (self.looks - 1))
        # The factor is rounded up to powers of two, which is as strict or stricter, and needs few thresholds.
        divisor = parts * 2.0 ** math.ceil(math.log2(max(1.0, more)))
        if divisor == 1 or not math.isfinite(threshold):
            return threshold
        if divisor not in self._known:
            held = heldout_threshold(self.heldout, self.heldout_rate / divisor) if self.heldout_rate else None
            rate, freedom = self.bulk_rate / divisor, self.freedom
            bulk = bulk_threshold(self.bulk, rate, freedom=freedom) if self.bulk_rate else None
            self._known[divisor] = max((one for one in (held, bulk) if one is not None), default=-math.inf)
        # The result is not below the threshold, because the bulk may have set it with scores that have changed.
        return max(threshold, self._known[divisor])

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        names = ("heldout", "heldout_rate", "bulk", "bulk_rate", "looks", "freedom")
        return {name: getattr(self, name) for name in names}


def corrected_p_values(peaks: Tensor, *, heldout: Tensor | None, bulk: Tensor) -> Tensor:
    """Return p-values of samples' highest scores, corrected for the number of samples by Holm's method, `(n,)`.

    Each is the lowest rate at which its sample would be above the threshold, before the correction.

    Args:
        peaks: highest scores of all samples, `(n,)`, minus infinity without a score.
        heldout: highest scores of held-out samples, `(m,)`; None if only the bulk calibrates.
        bulk: highest scores of the bulk, `(m,)`.

    Returns:
        The p-values; NaN for samples without a highest score, and for all if too few scores, or equal scores, show
        their spread.
    """
    found = torch.full((len(peaks),), math.nan, dtype=torch.float64)
    null, fewest = (bulk, MINIMUM_BULK) if heldout is None else (heldout, MINIMUM_CALIBRATING)
    if len(null) < fewest or not float(null.max() - null.median()) > 0:
        return found
    known = peaks > -math.inf
    if heldout is None:
        single = robust_p_values(peaks[known], null, upper=True, freedom=BULK_FREEDOM)
    else:
        single = tail_p_values(peaks[known], null)
    found[known] = holm(single)
    return found
