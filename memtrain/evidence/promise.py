"""The promise of a threshold, and the only place where rates become words.

Every summary, `calibration.json`, the model card and the message before training separate three rates:

- the *requested* rate, `false_positive_rate`;
- the *promised* rate for samples like the held-out ones, and its basis. An *order statistic* of n held-out samples
  promises multiples of 1/(n + 1) for any distribution of scores. A *tail bound* keeps a requested rate below 1/(n + 1),
  if scores beyond the highest become rarer at least with the third power of their distance from the median
  (:func:`~memtrain.functional.statistics.tail_threshold`). The *bulk* of the training samples promises nothing, because
  its ordinary samples are unknown.
- the *measured* rate in simulations of ordinary samples with about as many held-out samples (`benchmarks/rates.py`,
  with figures in :mod:`memtrain.evidence.measured_rates`). It has the mean over runs in the worst of several kinds of
  data, and the worst run.

A promised rate is an average over draws of the held-out samples, and a user has one draw. So a second bound holds for
95 % of the draws (a tolerance bound). If the tail bound is used, both figures are also stated without its assumption.
Neither covers samples of another kind than the held-out ones, or training that moves all training samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memtrain.evidence.measured_rates import Measured, measured
from memtrain.evidence.thresholds import BULK, ORDER, heldout_method
from memtrain.functional.statistics import MINIMUM_CALIBRATING, order_rate_bound, samples_needed

CONFIDENCE = 0.95
"""Share of the draws of held-out samples for which the bounds hold."""
FIELDS = (
    "promised_rate",
    "promised_by",
    "rate_bound",
    "assumption_free_rate",
    "assumption_free_bound",
    "heldout_needed",
    "measured_rate",
    "measured_worst_run",
)
"""Names in `calibration.json`."""


@dataclass(frozen=True)
class Promise:
    """The promise of a number of held-out samples.

    Attributes:
        asked: the requested false-positive rate.
        heldout: number of calibrating held-out samples; None if the bulk calibrates.
        by: basis of the promise, `order statistic`, `tail bound` or `bulk`.
        rate: promised rate on average over draws of the held-out samples; None without a promise.
        bound: rate that 95 % of the draws keep; None without a promise.
        free_rate: promised rate for any distribution of scores.
        free_bound: rate that 95 % of the draws keep for any distribution of scores.
        needed: number of held-out samples that promise `asked` for any distribution of scores.
        measured: rate measured in simulation; None without a measurement.
    """

    asked: float
    heldout: int | None
    by: str
    rate: float | None
    bound: float | None
    free_rate: float | None
    free_bound: float | None
    needed: int
    measured: Measured | None

    def figures(self) -> dict[str, Any]:
        """Return the figures for `calibration.json`; rates are shares from 0 to 1."""
        values: list[Any] = [self.rate, self.by, self.bound, self.free_rate, self.free_bound, self.needed]
        values += [None, None] if self.measured is None else [self.measured.mean, self.measured.worst]
        return dict(zip(FIELDS, values, strict=True))

    def sentences(self) -> list[str]:
        """Return sentences about the promised and the measured rate."""
        return [self._promised(), *([] if self.measured is None else [self._measured()])]

    def warning(self) -> str | None:
        """Return the warning before training if the requested rate needs more held-out samples, or else None."""
        if self.by == ORDER:
            return None
        if self.heldout is None:
            return (
                f"No held-out samples calibrate, so the requested rate of {percent(self.asked)} is not promised. "
                f"{self._remedy()}"
            )
        return (
            f"{self.heldout} held-out samples promise {percent(self.asked)} only by an assumption on the tail of their "
            f"scores. Without it, they promise {percent(self.free_rate)} on average and {percent(self.free_bound)} "
            f"with {percent(CONFIDENCE)} confidence. {self._remedy()}"
        )

    def _remedy(self) -> str:
        return (
            f"A promise without an assumption needs {self.needed:,} of them. Raise data.init_args.heldout_fraction, "
            "set a heldout_path, or raise false_positive_rate."
        )

    def _promised(self) -> str:
        asked, sure = percent(self.asked), percent(CONFIDENCE)
        if self.rate is None:
            return (
                f"Promised: no rate, because no held-out samples calibrated. The requested rate is {asked}. "
                f"The threshold lies above the bulk of the training samples. A promise needs {self.needed:,} held-out "
                "samples."
            )
        said = (
            f"Promised: at most {percent(self.rate)} of samples like the {self.heldout:,} held-out ones, on average "
            f"over which samples are held out, and at most {percent(self.bound)} with {sure} confidence"
        )
        if self.by == ORDER:
            return f"{said}, for any distribution of scores (order statistic)."
        return (
            f"{said}, if high scores become rarer at least with the third power of their distance from the median "
            f"(tail bound). Without this assumption, the two rates are {percent(self.free_rate)} and "
            f"{percent(self.free_bound)}. A promise of {asked} without it needs {self.needed:,} held-out samples."
        )

    def _measured(self) -> str:
        assert self.measured is not None
        found = self.measured
        basis = f"with {found.heldout:,} held-out samples" if found.heldout else "without held-out samples"
        nearest = ", the nearest simulated number" if found.heldout != (self.heldout or 0) else ""
        return (
            f"Measured in a simulation {basis}{nearest}: {percent(found.mean)} of ordinary samples were flagged in the "
            f"worst of {found.scenarios} kinds of simulated data, and {percent(found.worst)} in the worst run."
        )


def promise(heldout: int | None, false_positive_rate: float) -> Promise | None:
    """Return the promise of `heldout` samples (None for the bulk); None if they are too few for a threshold."""
    needed = samples_needed(false_positive_rate)
    if heldout is None:
        found = measured(None, false_positive_rate)
        return Promise(false_positive_rate, None, BULK, None, None, None, None, needed, found)
    if heldout < MINIMUM_CALIBRATING:
        return None
    by = heldout_method(heldout, false_positive_rate)
    above = max(1, math.floor(false_positive_rate * (heldout + 1) + 1e-9))
    free_rate, free_bound = above / (heldout + 1), order_rate_bound(heldout, above=above, confidence=CONFIDENCE)
    # The tail bound lies above the highest score. It is reached as much more rarely as the rate is below 1/(n + 1).
    share = 1.0 if by == ORDER else false_positive_rate / free_rate
    return Promise(
        false_positive_rate,
        heldout,
        by,
        share * free_rate,
        share * free_bound,
        free_rate,
        free_bound,
        needed,
        measured(heldout, false_positive_rate),
    )


def promise_of(figures: Mapping[str, Any]) -> Promise | None:
    """Return the promise of a run from its `calibration.json`; None without a threshold."""
    if figures["threshold"] is None:
        return None
    return promise(figures["heldout"], figures["false_positive_rate"])


def percent(share: float | None) -> str:
    """Return a rate in words, to two digits."""
    if share is None:
        return "an unknown share"
    return f"{float(f'{100 * share:.2g}'):g} %"


def promised_in_short(figures: Mapping[str, Any]) -> str:
    """Return a cell of a table from a run's `calibration.json`."""
    found = promise_of(figures)
    if found is None or found.rate is None:
        return f"none; {percent(figures['false_positive_rate'])} was requested"
    sure = f"{percent(found.bound)} with {percent(CONFIDENCE)} confidence"
    return f"{percent(found.rate)} on average, {sure} ({found.by}; {percent(found.asked)} was requested)"
