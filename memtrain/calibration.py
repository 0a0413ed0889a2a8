"""From signal values to flags: evidence per sample over visits, calibrated on held-out samples.

1. A visit's values are compared with the sample's reference profile at the nearest measured timestep. Visits at high
   noise, where nothing separates, are left out.
2. Held-out samples are measured now and then under the model as it is, and give each timestep bucket a mean and a
   standard deviation that follow the model. Every visit becomes a z-score against them, so that what training does to
   images in general is taken out.
3. Evidence is the mean z over a sample's last visits. Samples differ for good, not only from visit to visit; the share
   of variance between samples is estimated from the held-out ones, and the evidence is scaled by its standard deviation
   under it, so that samples with few and with many visits are comparable.
4. A signal of known sign scores by the signed evidence; one with unknown signs per site by the mean square over sites.
5. The threshold is set on the highest score that each held-out sample ever reached, so the stated false-positive rate
   holds for a whole run rather than for one look. With enough held-out samples it is an order statistic (no
   assumption); with fewer, the normal distribution has to be assumed, which is said.

A single noisy visit condemns nobody: nothing is flagged before `minimum_visits`.

Without held-out samples the training samples themselves are the null: every visit updates the moments, and the
threshold is set on the bulk of their scores. That finds outliers among them, and promises less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.errors import CalibrationError
from memtrain.functional.statistics import (
    DriftingMoments,
    conformal_threshold,
    normal_threshold,
    robust_threshold,
    samples_needed,
)

MINIMUM_HELDOUT = 8
"""Held-out samples below which not even the normal distribution helps."""


def signed_score(evidence: Tensor, memorized_when: Literal["low", "high", "unknown"]) -> Tensor:
    """Evidence `(n, columns)` of one signal to a score `(n,)`, high when memorized."""
    if memorized_when == "unknown":
        return evidence.square().mean(dim=1).sqrt()
    return evidence.mean(dim=1) * (1 if memorized_when == "high" else -1)


@dataclass
class Evidence:
    """Accumulated evidence of a set of samples; grows as new keys appear.

    Attributes:
        columns: number of values per visit.
        window: visits that the running mean remembers.
        row: key to row.
        visits: `(n,)` visits counted.
        mean: `(n, columns)` running mean of z.
        dilution: `(n,)` sum of squared weights in that mean: 1 / visits at first, then 1 / (2 window − 1).
        total: `(n, columns)` sum of the compared values, not standardised, over the counted visits.
    """

    columns: int
    window: int = 12
    row: dict[str, int] = field(default_factory=dict)
    visits: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    dilution: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    total: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Rows of `keys`; unknown keys get new ones."""
        new = [key for key in dict.fromkeys(keys) if key not in self.row]
        if new:
            for key in new:
                self.row[key] = len(self.row)
            zeros = torch.zeros(len(new), self.columns, dtype=torch.float64)
            self.visits = torch.cat([self.visits, zeros.new_zeros(len(new))])
            self.dilution = torch.cat([self.dilution, zeros.new_ones(len(new))])
            self.mean = torch.cat([self.mean.view(-1, self.columns), zeros])
            self.total = torch.cat([self.total.view(-1, self.columns), zeros])
        return [self.row[key] for key in keys]

    def add(self, row: int, values: Tensor, z: Tensor) -> None:
        """One visit of one sample: compared values and z-scores, each `(columns,)`."""
        self.total[row] += values
        self.visits[row] += 1
        rate = 1 / min(float(self.visits[row]), self.window)
        self.mean[row] += rate * (z - self.mean[row])
        self.dilution[row] = (1 - rate) ** 2 * self.dilution[row] + rate**2 if rate < 1 else 1.0

    def scaled(self, between: Tensor, rows: list[int] | None = None) -> Tensor:
        """Evidence in units of its standard deviation under the null, `(n, columns)`.

        Args:
            between: `(columns,)` share of the variance that lies between samples.
            rows: of these samples; default all.
        """
        chosen = slice(None) if rows is None else rows
        variance = between + (1 - between) * self.dilution[chosen, None]
        return self.mean.view(-1, self.columns)[chosen] / variance.sqrt()

    def share_between_samples(self) -> Tensor:
        """Share of variance between samples `(columns,)`, by the method of moments from these samples' evidence.

        Var(mean z) is `share + (1 − share) · dilution` when single visits have variance 1.
        """
        seen = self.visits > 1
        if int(seen.sum()) < 2:
            return torch.zeros(self.columns, dtype=torch.float64)
        excess = (self.mean[seen].square() - self.dilution[seen, None]).mean(0)
        return (excess / (1 - self.dilution[seen]).mean()).clamp(0.0, 0.95)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {
            "keys": list(self.row),
            "visits": self.visits,
            "mean": self.mean,
            "dilution": self.dilution,
            "total": self.total,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.row = {key: row for row, key in enumerate(state["keys"])}
        self.visits, self.mean = state["visits"], state["mean"]
        self.dilution, self.total = state["dilution"], state["total"]


class Calibration:
    """Flags samples by one signal at a stated false-positive rate.

    Args:
        columns: number of values per visit, of all signals.
        scored: the columns of the signal that flags go by.
        memorized_when: that signal's sign.
        buckets: number of timestep buckets.
        false_positive_rate: share of held-out-like samples that may be flagged over a whole run.
        minimum_visits: counted visits before a sample can be flagged.
        window: visits that the evidence remembers.
        heldout: whether held-out samples calibrate; otherwise the bulk of the training samples does.
    """

    def __init__(
        self,
        columns: int,
        *,
        scored: slice,
        memorized_when: Literal["low", "high", "unknown"],
        buckets: int,
        false_positive_rate: float = 0.01,
        minimum_visits: int = 6,
        window: int = 12,
        heldout: bool = True,
    ) -> None:
        if not 0 < false_positive_rate <= 0.5:
            raise CalibrationError(
                f"false_positive_rate={false_positive_rate}", expected="above 0, at most 0.5", remedy="change it"
            )
        self.scored, self.memorized_when = scored, memorized_when
        self.false_positive_rate, self.minimum_visits = false_positive_rate, minimum_visits
        self.moments = DriftingMoments(buckets, columns, window=64)
        self.samples = Evidence(columns, window)
        self.heldout = Evidence(columns, window) if heldout else None
        self.highest: dict[str, float] = {}
        self.threshold = math.inf
        self.first_flagged: dict[str, int] = {}
        self._between = torch.zeros(columns, dtype=torch.float64)

    def require_heldout(self, count: int) -> str:
        """Refuse too few held-out samples, before any work is done.

        Returns:
            How the threshold will be set: `order statistic` or `normal distribution`.

        Raises:
            CalibrationError: if there are fewer than can say anything.
        """
        if count < MINIMUM_HELDOUT:
            raise CalibrationError(
                f"{count} held-out samples cannot calibrate a false-positive rate of {self.false_positive_rate}",
                expected=f"at least {MINIMUM_HELDOUT}, or {samples_needed(self.false_positive_rate)} to do without "
                "assuming a normal distribution",
                remedy="raise data.init_args.heldout_fraction, name a heldout_path, or train without the monitor",
            )
        return "order statistic" if count >= samples_needed(self.false_positive_rate) else "normal distribution"

    def add_heldout(self, keys: Sequence[str], buckets: Sequence[int], values: Tensor) -> None:
        """Visits of held-out samples under the model as it is, `(B, columns)`; sets the threshold anew."""
        assert self.heldout is not None
        for row, bucket, value in zip(self.heldout.rows(keys), buckets, values.double(), strict=True):
            z = self.moments.standardise(bucket, value)
            self.moments.update(bucket, value)
            if not bool(z.isnan().any()):
                self.heldout.add(row, value, z)
        self._between = self.heldout.share_between_samples()
        scores = self._scores(self.heldout)
        for key, row in self.heldout.row.items():
            if float(self.heldout.visits[row]) >= self.minimum_visits:
                self.highest[key] = max(float(scores[row]), self.highest.get(key, -math.inf))
        self._set_threshold()

    def _set_threshold(self) -> None:
        if self.heldout is None:
            seen = self._scores(self.samples)[self.samples.visits >= self.minimum_visits]
            self.threshold = robust_threshold(seen, self.false_positive_rate) if len(seen) >= 16 else math.inf
            return
        scores = torch.tensor(list(self.highest.values()), dtype=torch.float64)
        if len(scores) >= samples_needed(self.false_positive_rate):
            self.threshold = conformal_threshold(scores, self.false_positive_rate)
        elif len(scores) >= MINIMUM_HELDOUT:
            self.threshold = normal_threshold(scores, self.false_positive_rate)

    def add(self, keys: Sequence[str], buckets: Sequence[int | None], values: Tensor, step: int) -> None:
        """Visits of training samples, `(B, columns)`; a bucket of None leaves a visit out.

        Args:
            keys: B keys.
            buckets: B timestep buckets.
            values: compared values.
            step: recorded as the first flagged step of samples that cross the threshold now.
        """
        touched = []
        for key, row, bucket, value in zip(keys, self.samples.rows(keys), buckets, values.double(), strict=True):
            if bucket is None:
                continue
            z = self.moments.standardise(bucket, value)
            if self.heldout is None:
                self.moments.update(bucket, value)
            if not bool(z.isnan().any()):
                self.samples.add(row, value, z)
                touched.append(key)
        if self.heldout is None:
            self._between = self.samples.share_between_samples()
            self._set_threshold()
        for key, score in zip(touched, self.scores(touched).tolist(), strict=True):
            if self._exceeds(score, self.samples.row[key]):
                self.first_flagged.setdefault(key, step)

    def _scores(self, evidence: Evidence, rows: list[int] | None = None) -> Tensor:
        return signed_score(evidence.scaled(self._between, rows)[:, self.scored], self.memorized_when)

    def _exceeds(self, score: float, row: int) -> bool:
        return float(self.samples.visits[row]) >= self.minimum_visits and score > self.threshold

    def scores(self, keys: Sequence[str]) -> Tensor:
        """Accumulated evidence of samples `(B,)`, 0 before the first counted visit."""
        return self._scores(self.samples, self.samples.rows(keys))

    def flagged(self, keys: Sequence[str]) -> Tensor:
        """Whether each sample is above the threshold now, `(B,)` bool."""
        scores, rows = self.scores(keys), self.samples.rows(keys)
        return torch.tensor([self._exceeds(float(s), row) for s, row in zip(scores, rows, strict=True)])

    def ever_flagged(self, keys: Sequence[str]) -> Tensor:
        """Whether each sample has been above the threshold at some visit, `(B,)` bool."""
        return torch.tensor([key in self.first_flagged for key in keys])

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {
            "samples": self.samples.state_dict(),
            "heldout": self.heldout.state_dict() if self.heldout is not None else {},
            "moments": {"count": self.moments.count, "mean": self.moments.mean, "square": self.moments.square},
            "highest": dict(self.highest),
            "threshold": self.threshold,
            "first_flagged": dict(self.first_flagged),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.samples.load_state_dict(state["samples"])
        if self.heldout is not None:
            self.heldout.load_state_dict(state["heldout"])
        moments = state["moments"]
        self.moments.count, self.moments.mean, self.moments.square = (
            moments["count"],
            moments["mean"],
            moments["square"],
        )
        self.highest, self.threshold = dict(state["highest"]), state["threshold"]
        self.first_flagged = dict(state["first_flagged"])
        self._between = (self.heldout or self.samples).share_between_samples()
