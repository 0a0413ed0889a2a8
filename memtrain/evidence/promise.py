"""What a threshold promises: the one place where rates become words.

Three things are told apart in every summary, in `calibration.json`, on the model card and before training:

- the rate that was *asked* for, `false_positive_rate`;
- the rate that is *promised* of samples like the held-out ones, and by what. An *order statistic* of n held-out samples
  promises multiples of 1/(n + 1), whatever the distribution of scores. Below 1/(n + 1) a *tail bound* keeps the asked
  rate if scores beyond the highest become rarer at least with the third power of their distance from the median
  (:func:`~memtrain.functional.statistics.tail_threshold`). The *bulk* of the training samples promises nothing: nobody
  knows which of them are ordinary.
- the rate that was *measured* in simulations of ordinary samples with about as many held-out ones
  (`benchmarks/rates.py`; the figures are in :mod:`memtrain.evidence.measured_rates`): the mean over runs in the worst
  of several kinds of data, and the worst run.

A promised rate is an average over the draw of the held-out samples, and a user has one draw. So a bound stands beside
it that holds for 95 % of the draws (a tolerance bound), and, where the tail bound is used, both without its assumption.
What neither covers: samples that differ in kind from the held-out ones, and training that moves all it trains on.
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
"""Of the bounds: share of the draws of held-out samples."""
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
    """What so many held-out samples promise.

    Attributes:
        asked: the false-positive rate that was asked for.
        heldout: held-out samples that calibrate; None where the bulk does.
        by: `order statistic`, `tail bound` or `bulk`.
        rate: promised on average over draws of the held-out samples; None where nothing is.
        bound: kept by 95 % of the draws; None where nothing is promised.
        free_rate: promised whatever the distribution of scores.
        free_bound: kept by 95 % of the draws whatever the distribution.
        needed: held-out samples that promise `asked` whatever the distribution.
        measured: in simulation; None where nobody measured.
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
        """As `calibration.json` has them; rates are shares from 0 to 1."""
        values: list[Any] = [self.rate, self.by, self.bound, self.free_rate, self.free_bound, self.needed]
        values += [None, None] if self.measured is None else [self.measured.mean, self.measured.worst]
        return dict(zip(FIELDS, values, strict=True))

    def sentences(self) -> list[str]:
        """What is promised, and what was measured."""
        return [self._promised(), *([] if self.measured is None else [self._measured()])]

    def warning(self) -> str | None:
        """What to say before training where the asked rate takes more held-out samples; None where it does not."""
        if self.by == ORDER:
            return None
        if self.heldout is None:
            return (
                f"No held-out samples calibrate, so the rate of {percent(self.asked)} that was asked for is not "
                f"promised. {self._remedy()}"
            )
        return (
            f"{self.heldout} held-out samples promise {percent(self.asked)} only by an assumption on the tail of their "
            f"scores; without it, {percent(self.free_rate)} on average and {percent(self.free_bound)} with "
            f"{percent(CONFIDENCE)} confidence. {self._remedy()}"
        )

    def _remedy(self) -> str:
        return (
            f"It takes {self.needed:,} held-out samples to promise it without: raise data.init_args.heldout_fraction, "
            "name a heldout_path, or raise false_positive_rate."
        )

    def _promised(self) -> str:
        asked, sure = percent(self.asked), percent(CONFIDENCE)
        if self.rate is None:
            return (
                f"Promised: nothing, as no held-out samples calibrated. {asked} was asked for, and the threshold lies "
                f"above the bulk of the training samples. It takes {self.needed:,} held-out samples to promise it."
            )
        said = (
            f"Promised: at most {percent(self.rate)} of samples like the {self.heldout:,} held-out ones, on average "
            f"over which samples are held out, and at most {percent(self.bound)} with {sure} confidence"
        )
        if self.by == ORDER:
            return f"{said}, whatever the distribution of scores (order statistic)."
        return (
            f"{said}, if high scores become rarer at least with the third power of their distance from the median "
            f"(tail bound). Without that assumption {percent(self.free_rate)} and {percent(self.free_bound)}; it takes "
            f"{self.needed:,} held-out samples to promise {asked} without."
        )

    def _measured(self) -> str:
        assert self.measured is not None
        found = self.measured
        basis = f"with {found.heldout:,} held-out samples" if found.heldout else "without held-out samples"
        return (
            f"Measured in simulation {basis}: {percent(found.mean)} of ordinary samples in the worst of "
            f"{found.scenarios} kinds of data ({found.scenario}), {percent(found.worst)} in the worst run."
        )


def promise(heldout: int | None, false_positive_rate: float) -> Promise | None:
    """What `heldout` samples (None: the bulk) promise; None where they are too few for a threshold."""
    needed = samples_needed(false_positive_rate)
    if heldout is None:
        found = measured(None, false_positive_rate)
        return Promise(false_positive_rate, None, BULK, None, None, None, None, needed, found)
    if heldout < MINIMUM_CALIBRATING:
        return None
    by = heldout_method(heldout, false_positive_rate)
    above = max(1, math.floor(false_positive_rate * (heldout + 1) + 1e-9))
    free_rate, free_bound = above / (heldout + 1), order_rate_bound(heldout, above=above, confidence=CONFIDENCE)
    # The tail bound lies above the highest score: as much more seldom reached as the rate is below 1/(n + 1).
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
    """Of a run, from its `calibration.json`; None without a threshold."""
    if figures["threshold"] is None:
        return None
    return promise(figures["heldout"], figures["false_positive_rate"])


def percent(share: float | None) -> str:
    """A rate in words, to two digits."""
    if share is None:
        return "an unknown share"
    return f"{float(f'{100 * share:.2g}'):g} %"


def promised_in_short(figures: Mapping[str, Any]) -> str:
    """A cell of a table, from a run's `calibration.json`."""
    found = promise_of(figures)
    if found is None or found.rate is None:
        return f"none; {percent(figures['false_positive_rate'])} was asked for"
    sure = f"{percent(found.bound)} with {percent(CONFIDENCE)} confidence"
    return f"{percent(found.rate)} on average, {sure} ({found.by}; {percent(found.asked)} was asked for)"
