"""From signal values to flags: evidence per sample over visits, calibrated on held-out samples.

1. A visit's values are compared with the sample's values under the base model
   (:mod:`memtrain.evidence.base_profile`). Visits at high noise, where nothing separates, are left out.
2. Held-out samples are measured now and then under the model as it is, and give each timestep bucket a mean and a
   standard deviation that follow the model. Every visit becomes a z-score against them, so that what training does to
   images in general is taken out; a second standardisation, within classes of prompt length, takes out what it does
   to short and to long captions.
3. Evidence is the mean z over a sample's last visits (:mod:`memtrain.evidence.running_means`).
4. A signal of known sign scores by the signed evidence. One whose sites differ in sign scores by the mean square over
   sites, or, where the run plants canaries, along the direction that separates these from other samples best. It is
   learnt as soon as four canaries have visits enough to be flagged, and 32 ordinary samples (or two for each value)
   three visits; ordinary are those that are neither flagged nor visited far more often than most, as the duplicates are
   that nobody knows of. Until then, and in a run that never gets there, samples are scored, and flagged, by the mean
   square. A later direction takes over where it separates canaries that it was not fitted to 1.25 times as far.
5. The threshold is set on the highest score that each held-out sample ever reached, so the stated false-positive rate
   holds for a whole run rather than for one look. With enough held-out samples it is an order statistic (no
   assumption); with fewer, the normal distribution has to be assumed, which is said.
6. What a model is trained on it comes to know better than what is held out, all of it. So the threshold does not stay
   below what the bulk of the training samples that are visited as often as most reach (by median and spread of their
   highest scores): a memorized sample stands out among both. Early in a run, samples with visits enough are duplicates
   and nothing else, and whoever was visited so often once never counts as one of the bulk.

A single noisy visit condemns nobody: nothing is flagged before `minimum_visits`.

Without held-out samples the training samples themselves are the null: every visit updates the moments, and the
threshold is set on the bulk of their highest scores (step 6 alone), once there are 32 of them. That finds outliers
among them, and promises less: of 300 simulated ordinary samples, 0.6 to 3.7 % were flagged at some time in 40 visits at
a stated 1 % (means of six runs, by how much samples differ; 5.7 % in the worst run), most where nothing is memorized
and samples hardly differ.

Every process feeds in the visits of all, in the same order, so calibration is the same on all of them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.errors import CalibrationError
from memtrain.evidence.running_means import Evidence
from memtrain.functional.statistics import (
    DriftingMoments,
    conformal_threshold,
    discriminant,
    holm,
    left_out_separation,
    normal_p_value,
    normal_threshold,
    robust_threshold,
    samples_needed,
)

MINIMUM_HELDOUT = 8
"""Held-out samples below which not even the normal distribution helps."""
MINIMUM_BULK = 32
"""Training samples below which they have no bulk."""
ORDINARY = 3
"""Times the median number of visits that a sample of the bulk may have."""
MOMENTS_WINDOW = 64
"""Held-out visits that a timestep bucket's moments remember; by default those of 256 batches."""
LENGTH_CLASSES = 3
"""Classes of prompt length, if there are held-out samples enough."""
HELDOUT_PER_CLASS = 32
"""Held-out samples that a class of prompt length needs."""
MINIMUM_CANARIES = 4
"""Canaries below which no direction is fitted to them."""
ORDINARY_VISITS = 3
"""Counted visits of the samples that canaries are told from: fewer than a flag needs, as nobody is judged by them."""
GAIN = 1.25
"""Times the separation of the direction at hand that another one has to reach to take its place."""

Sign = Literal["low", "high", "unknown"]


def signed_score(evidence: Tensor, memorized_when: Sign) -> Tensor:
    """Evidence `(n, columns)` of one signal to a score `(n,)`, high when memorized."""
    if memorized_when == "unknown":
        return evidence.square().mean(dim=1).sqrt()
    return evidence.mean(dim=1) * (1 if memorized_when == "high" else -1)


def length_edges(lengths: Sequence[int]) -> list[int]:
    """Prompt lengths at which a new class begins, so that each class has its share of the held-out samples."""
    classes = max(1, min(LENGTH_CLASSES, len(lengths) // HELDOUT_PER_CLASS))
    ordered = sorted(lengths)
    return sorted({ordered[index * len(ordered) // classes] for index in range(1, classes)} - {*ordered[:1]})


class Calibration:
    """Flags samples at a stated false-positive rate.

    Args:
        columns: number of values per visit, of all signals.
        scored: the columns that flags go by.
        memorized_when: their sign; `unknown` for columns that differ in sign.
        buckets: number of timestep buckets.
        false_positive_rate: share of held-out-like samples that may be flagged over a whole run.
        minimum_visits: counted visits before a sample can be flagged.
        window: visits that the evidence remembers.
        heldout: whether held-out samples calibrate; otherwise the bulk of the training samples does.
        edges: prompt lengths at which a new class begins, see :func:`length_edges`.
        canaries: keys of samples that are known to be repeated; they choose the direction where the sign is unknown.
        resolution: `(columns,)` smallest spread between samples that means anything.
    """

    def __init__(
        self,
        columns: int,
        *,
        scored: slice,
        memorized_when: Sign,
        buckets: int,
        false_positive_rate: float = 0.01,
        minimum_visits: int = 6,
        window: int = 12,
        heldout: bool = True,
        edges: Sequence[int] = (),
        canaries: Collection[str] = (),
        resolution: Tensor | None = None,
    ) -> None:
        if not 0 < false_positive_rate <= 0.5:
            raise CalibrationError(
                f"false_positive_rate={false_positive_rate}", expected="above 0, at most 0.5", remedy="change it"
            )
        self.scored, self.memorized_when = scored, memorized_when
        self.false_positive_rate, self.minimum_visits = false_positive_rate, minimum_visits
        self.edges, self.canaries = list(edges), frozenset(canaries)
        self.moments = DriftingMoments(
            buckets, columns, window=MOMENTS_WINDOW, minimum=MOMENTS_WINDOW // 8, resolution=resolution
        )
        classes = len(self.edges) + 1
        self.length_moments = DriftingMoments(classes, columns, window=4 * MOMENTS_WINDOW, minimum=MOMENTS_WINDOW // 2)
        self.samples = Evidence(columns, window)
        self.heldout = Evidence(columns, window) if heldout else None
        self.highest: dict[str, float] = {}
        self.threshold = math.inf
        self.first_flagged: dict[str, int] = {}
        self.peak: dict[str, float] = {}
        self.frequent: set[str] = set()
        self.direction: Tensor | None = None
        self.separation = 0.0
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

    def require_teachable(self, ordinary: int | None) -> None:
        """Refuse canaries and other samples that are too few to learn a direction from, before any work is done.

        Args:
            ordinary: training samples that are no canaries; None if unknown.

        Raises:
            CalibrationError: if there are too few, or no held-out samples.
        """
        needed = self.ordinary_needed()
        few = ordinary is not None and ordinary < needed
        if self.heldout is not None and len(self.canaries) >= MINIMUM_CANARIES and not few:
            return
        others = "" if ordinary is None else f", {ordinary} other training samples"
        raise CalibrationError(
            f"flag_by: combined with {len(self.canaries)} canaries{others}"
            f"{' and no held-out samples' if self.heldout is None else ''}",
            expected=f"at least {MINIMUM_CANARIES} canaries, to weight the signals by, {needed} training samples to "
            "tell them from, and held-out samples",
            remedy="set data.init_args.canaries, train on more samples, or flag by one signal",
        )

    def _standardise(self, buckets: Sequence[int], lengths: Sequence[float], values: Tensor) -> Tensor:
        """z-scores `(B, columns)` against the visits' timestep buckets, then within their classes of prompt length."""
        z = self.moments.standardise(torch.tensor(buckets, dtype=torch.long), values)
        if not self.edges:
            return z
        # Without a type, those of no visits would be floats, which index nothing.
        classes = torch.tensor([self._class(length) for length in lengths], dtype=torch.long)
        within = self.length_moments.standardise(classes, z)
        known = torch.tensor([length == length for length in lengths], dtype=torch.bool)
        return torch.where(known[:, None], within, z)

    def _class(self, length: float) -> int:
        return bisect.bisect_right(self.edges, length)

    def _follow(self, buckets: Sequence[int], lengths: Sequence[float], values: Tensor) -> Tensor:
        """As :meth:`_standardise`, one visit after the other, and let the moments follow."""
        parts = []
        for bucket, length, value in zip(buckets, lengths, values, strict=True):
            parts.append(self._standardise([bucket], [length], value[None]))
            if self.edges and length == length:
                self.length_moments.update(self._class(length), self.moments.standardise(bucket, value))
            self.moments.update(bucket, value)
        return torch.cat(parts) if parts else torch.zeros_like(values)

    def add_heldout(
        self, keys: Sequence[str], buckets: Sequence[int], values: Tensor, lengths: Sequence[float] | None = None
    ) -> None:
        """Visits of held-out samples under the model as it is, `(B, columns)`; sets the threshold anew.

        Args:
            keys: B keys.
            buckets: B timestep buckets.
            values: compared values, NaN where there is none.
            lengths: B prompt lengths, tokens; NaN or None if unknown.
        """
        assert self.heldout is not None
        lengths = [math.nan] * len(keys) if lengths is None else lengths
        values = values.double()
        self.heldout.add(self.heldout.rows(keys), values, self._follow(buckets, lengths, values))
        self._between = self.heldout.share_between_samples()
        self._fit_direction()
        scores, ready = self._scores(self.heldout), self._ready(self.heldout)
        for key, row in self.heldout.row.items():
            if ready[row]:
                self.highest[key] = max(float(scores[row]), self.highest.get(key, -math.inf))
        self._set_threshold()

    def _fit_direction(self) -> None:
        """Take the direction in which canaries stand out most, of all moments so far."""
        if self.memorized_when != "unknown" or not self.canaries or self.heldout is None:
            return
        positive, negative = self._taught_by()
        if len(positive) < MINIMUM_CANARIES or len(negative) < self.ordinary_needed():
            return
        scaled = self.samples.scaled(self._between)[:, self.scored]
        separation = left_out_separation(scaled[positive], scaled[negative])
        # Canaries that are skipped once flagged come to look like any sample again; they taught at their most distinct.
        # Every direction has its own highest scores, which stay in the threshold, so small gains are not worth another.
        if separation > GAIN * self.separation:
            self.direction, self.separation = discriminant(scaled[positive], scaled[negative])[0], separation

    def _taught_by(self) -> tuple[list[int], list[int]]:
        """Rows of the canaries and of the ordinary samples that have visits enough to teach a direction."""
        ready = self._ready(self.samples).tolist()
        positive = [row for key, row in self.samples.row.items() if ready[row] and key in self.canaries]
        # Not the held-out samples: a direction fitted to them would set their own scores, and the threshold, too low.
        # Nor samples that are visited more than most: early in a run these are the duplicates that canaries stand for.
        others = [key for key in self.samples.row if key not in self.canaries and key not in self.first_flagged]
        enough = [visits >= ORDINARY_VISITS for visits in self.counted_visits(others)]
        ordinary = [key for key, known in zip(others, enough, strict=True) if known]
        frequent = self._frequent(ordinary)
        return positive, [self.samples.row[key] for key in ordinary if key not in frequent]

    def ordinary_needed(self) -> int:
        """Samples beside the canaries that a direction is learnt from at the least."""
        return max(MINIMUM_BULK, 2 * len(range(self.samples.columns)[self.scored]))

    def untaught(self) -> tuple[int, int] | None:
        """Canaries and ordinary samples with visits enough, where a direction was to be learnt and none was."""
        if self.memorized_when != "unknown" or not self.canaries or self.heldout is None or self.direction is not None:
            return None
        positive, negative = self._taught_by()
        return len(positive), len(negative)

    def _set_threshold(self) -> None:
        peaks = self._bulk()
        if self.heldout is None:
            if len(peaks) >= MINIMUM_BULK:
                self.threshold = robust_threshold(peaks, self.false_positive_rate, upper=True)
            return
        scores = torch.tensor(list(self.highest.values()), dtype=torch.float64)
        if len(scores) >= samples_needed(self.false_positive_rate):
            self.threshold = conformal_threshold(scores, self.false_positive_rate)
        elif len(scores) >= MINIMUM_HELDOUT:
            self.threshold = normal_threshold(scores, self.false_positive_rate)
        if math.isfinite(self.threshold) and len(peaks) >= MINIMUM_BULK:
            self.threshold = max(self.threshold, robust_threshold(peaks, self.false_positive_rate, upper=True))

    def _bulk(self) -> Tensor:
        """Highest scores of the samples that are visited as often as most, `(n,)`."""
        self.frequent |= self._frequent([key for key in self.peak if key not in self.frequent])
        return torch.tensor([p for key, p in self.peak.items() if key not in self.frequent], dtype=torch.float64)

    def _frequent(self, keys: Sequence[str]) -> set[str]:
        """Those of `keys` that have been visited far more often than most samples."""
        visits = self.samples.visits.view(-1, self.samples.columns)[:, self.scored].amin(dim=1)
        seen = visits[visits > 0]
        most = ORDINARY * float(seen.median()) if len(seen) else 0.0
        often = (visits[self.samples.rows(keys)] > most).tolist()
        return {key for key, frequent in zip(keys, often, strict=True) if frequent}

    def add(
        self,
        keys: Sequence[str],
        buckets: Sequence[int | None],
        values: Tensor,
        step: int,
        lengths: Sequence[float] | None = None,
    ) -> None:
        """Visits of training samples, `(B, columns)`; a bucket of None leaves a visit out.

        Args:
            keys: B keys.
            buckets: B timestep buckets.
            values: compared values, NaN where there is none.
            step: recorded as the first flagged step of samples that cross the threshold now.
            lengths: B prompt lengths, tokens; NaN or None if unknown.
        """
        counted = [index for index, bucket in enumerate(buckets) if bucket is not None]
        known = [math.nan] * len(keys) if lengths is None else lengths
        rows, values = self.samples.rows(keys), values[counted].double()
        standardise = self._standardise if self.heldout is not None else self._follow
        z = standardise([int(buckets[i] or 0) for i in counted], [known[i] for i in counted], values)
        self.samples.add([rows[i] for i in counted], values, z)
        touched = [keys[i] for i, nothing in zip(counted, z.isnan().all(dim=1).tolist(), strict=True) if not nothing]
        if self.heldout is None:
            self._between = self.samples.share_between_samples()
        touched = list(dict.fromkeys(touched))
        ready = self._ready(self.samples, self.samples.rows(touched)).tolist()
        scores = self.scores(touched).tolist()
        seen = [(key, score) for key, score, enough in zip(touched, scores, ready, strict=True) if enough]
        for key, score in seen:
            self.peak[key] = max(score, self.peak.get(key, -math.inf))
        if self.heldout is None:
            self._set_threshold()
        for key, score in seen:
            if score > self.threshold:
                self.first_flagged.setdefault(key, step)

    def _scores(self, evidence: Evidence, rows: list[int] | None = None) -> Tensor:
        scaled = evidence.scaled(self._between, rows)[:, self.scored]
        return signed_score(scaled, self.memorized_when) if self.direction is None else scaled @ self.direction

    def _ready(self, evidence: Evidence, rows: list[int] | None = None) -> Tensor:
        """Whether samples have visits enough in every scored column, `(n,)` bool."""
        visits = evidence.visits.view(-1, evidence.columns)
        return (visits if rows is None else visits[rows])[:, self.scored].amin(dim=1) >= self.minimum_visits

    def heldout_ready(self) -> int:
        """Held-out samples with visits enough, the same number on every process."""
        return 0 if self.heldout is None else int(self._ready(self.heldout).sum())

    def scores(self, keys: Sequence[str]) -> Tensor:
        """Accumulated evidence of samples `(B,)`, 0 before the first counted visit."""
        return self._scores(self.samples, self.samples.rows(keys))

    def counted_visits(self, keys: Sequence[str]) -> list[int]:
        """Visits of each sample that count as evidence, in the scored column that has fewest."""
        rows = [self.samples.row.get(key) for key in keys]
        known = [row for row in rows if row is not None]
        visits = self.samples.visits.view(-1, self.samples.columns)[known][:, self.scored].amin(dim=1).tolist()
        counts = iter(visits)
        return [0 if row is None else int(next(counts)) for row in rows]

    def ready(self, keys: Sequence[str]) -> Tensor:
        """Whether each sample has visits enough to be flagged, `(B,)` bool."""
        return torch.tensor([visits >= self.minimum_visits for visits in self.counted_visits(keys)], dtype=torch.bool)

    def flagged(self, keys: Sequence[str]) -> Tensor:
        """Whether each sample is above the threshold now, `(B,)` bool."""
        return (self.scores(keys) > self.threshold) & self._ready(self.samples, self.samples.rows(keys))

    def ever_flagged(self, keys: Sequence[str]) -> Tensor:
        """Whether each sample has been above the threshold at some visit, `(B,)` bool."""
        return torch.tensor([key in self.first_flagged for key in keys], dtype=torch.bool)

    def p_values(self, keys: Sequence[str]) -> Tensor:
        """Probability that a sample which is not memorized scores as high at some time in the run, `(B,)`.

        From the highest scores of the held-out samples (or the bulk of the training samples) under a normal
        distribution, and corrected for the number of training samples by Holm's method. NaN for samples with too few
        visits, and for all while too few scores, or equal ones, say how far apart they are. Unlike the threshold, it
        does not take out how far training moves all of its samples, so in a long run it is smaller than a flag would
        have it.
        """
        mean, deviation = self._null()
        if not deviation > 0:
            return torch.full((len(keys),), math.nan, dtype=torch.float64)
        names = list(self.peak)
        peaks = torch.tensor([self.peak[key] for key in names], dtype=torch.float64)
        corrected = holm(normal_p_value(peaks, mean=mean, deviation=deviation))
        known = dict(zip(names, corrected.tolist(), strict=True))
        return torch.tensor([known.get(key, math.nan) for key in keys], dtype=torch.float64)

    def _null(self) -> tuple[float, float]:
        """Mean and deviation of the highest scores when nothing is memorized; NaN from too few of them."""
        if self.heldout is None:
            null = torch.tensor(list(self.peak.values()), dtype=torch.float64)
            if len(null) < MINIMUM_BULK:
                return math.nan, math.nan
            mean = float(null.median())
            return mean, 1.4826 * float((null - mean).abs().median())
        null = torch.tensor(list(self.highest.values()), dtype=torch.float64)
        if len(null) < MINIMUM_HELDOUT:
            return math.nan, math.nan
        return float(null.mean()), float(null.std()) * math.sqrt(1 + 1 / len(null))

    def power(self) -> tuple[int, int]:
        """Canaries flagged so far, and canaries: how many of samples repeated like them the run finds."""
        return sum(key in self.first_flagged for key in self.canaries), len(self.canaries)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {
            "samples": self.samples.state_dict(),
            "heldout": self.heldout.state_dict() if self.heldout is not None else {},
            "moments": self.moments.state_dict(),
            "length_moments": self.length_moments.state_dict(),
            "highest": dict(self.highest),
            "threshold": self.threshold,
            "first_flagged": dict(self.first_flagged),
            "peak": dict(self.peak),
            "frequent": sorted(self.frequent),
            "direction": self.direction,
            "separation": self.separation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.samples.load_state_dict(state["samples"])
        if self.heldout is not None:
            self.heldout.load_state_dict(state["heldout"])
        self.moments.load_state_dict(state["moments"])
        self.length_moments.load_state_dict(state["length_moments"])
        self.highest, self.threshold = dict(state["highest"]), state["threshold"]
        self.first_flagged, self.peak = dict(state["first_flagged"]), dict(state["peak"])
        self.frequent = set(state["frequent"])
        self.direction, self.separation = state["direction"], state["separation"]
        self._between = (self.heldout or self.samples).share_between_samples()
