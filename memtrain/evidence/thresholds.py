"""Thresholds and p-values from the highest scores of samples that are not memorized.

With enough held-out samples the threshold is an order statistic (no assumption); with fewer, the highest scores are
extended by the heaviest tail that is assumed to occur, which is said. The bulk of the training samples gives one by
median and spread, and promises nothing. What each promises, and keeps in simulation, is in
:mod:`memtrain.evidence.promise`.

Where a sample may be flagged on several levels (:mod:`memtrain.evidence.levels`), each is judged at its part of the
stated rate. A family is visited, and so looked at, more often than what set the threshold: its part is divided by how
much more often, as a highest score grows with the looks at it.
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
"""By what a threshold is set."""

MINIMUM_BULK = 32
"""Training samples below which they have no bulk."""
BULK_FREEDOM = 5.0
"""Degrees of freedom of the distribution that highest scores are taken to follow where the bulk alone calibrates. With
the normal distribution, which an early bulk keeps, twice to seven times the stated rate were flagged in simulation."""


CROSSINGS = 4
"""Times as often as by a single look a running mean crosses a high threshold within the visits that it remembers."""


def require_rate(false_positive_rate: float) -> None:
    """Refuse a share of ordinary samples that nobody can ask for."""
    if not 0 < false_positive_rate <= 0.5:
        raise CalibrationError(
            f"false_positive_rate={false_positive_rate}", expected="above 0, at most 0.5", remedy="change it"
        )


def heldout_method(count: int, false_positive_rate: float) -> str:
    """How the threshold will be set from `count` held-out samples: `order statistic` or `tail bound`.

    Raises:
        CalibrationError: if there are fewer than can say anything.
    """
    if count < MINIMUM_CALIBRATING:
        raise CalibrationError(
            f"{count} held-out samples cannot calibrate a false-positive rate of {false_positive_rate}",
            expected=f"at least {MINIMUM_CALIBRATING}, or {samples_needed(false_positive_rate)} to do without an "
            "assumption on the tail of their scores",
            remedy="raise data.init_args.heldout_fraction or name a heldout_path; of too few images for either, set "
            "data.init_args.heldout to edited: edited copies of the training images stand in for held-out ones",
        )
    return ORDER if count >= samples_needed(false_positive_rate) else TAIL


def heldout_threshold(highest: Iterable[float] | Tensor, false_positive_rate: float) -> float | None:
    """Threshold from the highest score that each held-out sample ever reached; None from too few of them."""
    scores = highest if isinstance(highest, Tensor) else torch.tensor(list(highest), dtype=torch.float64)
    if len(scores) >= samples_needed(false_positive_rate):
        return conformal_threshold(scores, false_positive_rate)
    if len(scores) >= MINIMUM_CALIBRATING:
        return tail_threshold(scores, false_positive_rate)
    return None


class Spending:
    """A threshold that held-out samples set again and again, at a rate for the whole run.

    A sample is flagged if it is above the threshold of any moment, and those who are highest change. A held-out sample
    that was once among the highest k would have been flagged by the others. So the rate is spent: as many as the rate
    allows are ever among the highest that the threshold leaves out, and once they are named, no others. Where another
    one leads, the threshold lies above all of them, as far as the tail bound begins. Without this, 1.3 to 1.6 times the
    stated 1 and 5 % were flagged in simulation.

    Attributes:
        named: keys of the held-out samples that would have been flagged so far.
    """

    def __init__(self) -> None:
        self.named: set[str] = set()

    def threshold(self, name: Callable[[int], str], scores: Tensor, false_positive_rate: float) -> float | None:
        """The threshold now; None from too few.

        Args:
            name: key of a held-out sample, by its place in `scores`.
            scores: `(n,)` highest that each ever reached.
            false_positive_rate: of the whole run.
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
    """By what root-mean-square scores of `count` held-out samples are too low, as a factor.

    They are compared with a mean that they are part of: their squared distances from it are 1 − 1/n of the variance
    between samples, those of other samples 1 + 1/n. Of signed scores it is the spread alone that differs so.
    """
    return math.sqrt((count + 1) / (count - 1)) if count > 1 else 1.0


def bulk_threshold(peaks: Tensor, false_positive_rate: float, *, freedom: float = math.inf) -> float | None:
    """Threshold from the highest scores `(n,)` of the bulk of the training samples; None from too few of them.

    Args:
        peaks: highest scores.
        false_positive_rate: in (0, 1).
        freedom: degrees of freedom of the distribution that they are taken to follow; by default the normal one.
    """
    if len(peaks) < MINIMUM_BULK:
        return None
    return robust_threshold(peaks, false_positive_rate, upper=True, freedom=freedom)


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
        freedom: degrees of freedom of the distribution that the bulk is taken to follow.
    """

    heldout: Tensor = field(default_factory=_none)
    heldout_rate: float = 0.0
    bulk: Tensor = field(default_factory=_none)
    bulk_rate: float = 0.0
    looks: float = 1.0
    freedom: float = math.inf
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
            rate, freedom = self.bulk_rate / divisor, self.freedom
            bulk = bulk_threshold(self.bulk, rate, freedom=freedom) if self.bulk_rate else None
            self._known[divisor] = max((one for one in (held, bulk) if one is not None), default=-math.inf)
        # Not below it: the bulk may have set it, by scores that have changed since.
        return max(threshold, self._known[divisor])

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        names = ("heldout", "heldout_rate", "bulk", "bulk_rate", "looks", "freedom")
        return {name: getattr(self, name) for name in names}


def corrected_p_values(peaks: Tensor, *, heldout: Tensor | None, bulk: Tensor) -> Tensor:
    """p-values of samples' highest scores, corrected for the number of samples by Holm's method, `(n,)`.

    Each is the lowest rate at which its sample would be above the threshold, before the correction.

    Args:
        peaks: `(n,)` highest scores of all samples, minus infinity of those that have none.
        heldout: `(m,)` highest scores of held-out samples; None where the bulk alone calibrates.
        bulk: `(m,)` highest scores of the bulk.

    Returns:
        NaN for samples without a highest score, and for all where too few scores, or equal ones, say how far apart
        they are.
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
