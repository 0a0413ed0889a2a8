"""The bulk: the highest scores of the training samples that are visited as often as most.

What a model is trained on it comes to know better than what is held out, all of it. A memorized sample stands out among
the others that are trained on. Early in a run, samples with visits enough are duplicates and nothing else, so whoever
was visited far more often than most never counts as one of the bulk.

In a run without held-out samples the bulk is all that calibrates, and 32 ordinary samples with visits enough to be
flagged come late: where few images are repeated very often, after hundreds of visits to each of these. Until then an
*early bulk* takes their place, of samples that were counted once, as evidence is on one scale for any number of visits.
What it cannot know is assumed on the safe side: samples differ for good by a quarter of the variance at the least, as
with one visit each nobody knows how much they do; and the stated rate is divided by the independent looks that there
were at the sample visited most, as the others have hardly been looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.running_means import Evidence
from memtrain.evidence.thresholds import MINIMUM_BULK

ORDINARY = 3
"""Times the median number of visits that a sample of the bulk may have."""
EARLY_VISITS = 1
"""Counted visits of a sample of the early bulk; nobody is flagged by so few."""
EARLY_SHARE = 0.25
"""Least share of the variance that lies between samples, while there is an early bulk."""


def frequent(keys: Sequence[str], samples: Evidence, scored: slice) -> set[str]:
    """Those of `keys` that have been visited far more often than most samples.

    Args:
        keys: of samples that `samples` knows.
        samples: evidence of the training samples.
        scored: the columns that flags go by.
    """
    visits = samples.fewest_visits(scored)
    seen = visits[visits > 0]
    most = ORDINARY * float(seen.median()) if len(seen) else 0.0
    often = (visits[samples.rows(keys)] > most).tolist()
    return {key for key, is_frequent in zip(keys, often, strict=True) if is_frequent}


def looks(visits: float, window: int, *, minimum_visits: int) -> float:
    """Independent looks at a sample, at least 1: its running mean is another one after each `window` visits.

    Args:
        visits: counted visits of the sample.
        window: visits that the evidence remembers.
        minimum_visits: counted visits before the first look.
    """
    return max(1.0, 1 + (visits - minimum_visits) / window)


def most_looks(samples: Evidence, scored: slice, *, minimum_visits: int) -> float:
    """Independent looks so far at the sample that is visited most.

    Args:
        samples: evidence of the training samples.
        scored: the columns that flags go by.
        minimum_visits: counted visits before the first look.
    """
    visits = samples.fewest_visits(scored)
    return looks(float(visits.max()) if len(visits) else 0.0, samples.window, minimum_visits=minimum_visits)


class Bulk:
    """Highest scores of training samples so far.

    Args:
        samples: evidence of the training samples.
        scored: the columns that flags go by.
        minimum_visits: counted visits before a sample can be flagged.
        early_visits: counted visits of a sample of the early bulk; None if there is to be none.

    Attributes:
        peak: by key, of the samples with visits enough to be flagged.
        early: by key, of those with fewer too; None once it is no longer needed, or never was.
        frequent: keys of samples that were once visited far more often than most.
    """

    def __init__(self, samples: Evidence, *, scored: slice, minimum_visits: int, early_visits: int | None) -> None:
        self.samples, self.scored = samples, scored
        self.minimum_visits, self.early_visits = minimum_visits, early_visits
        self.peak: dict[str, float] = {}
        self.early: dict[str, float] | None = None if early_visits is None else {}
        self.frequent: set[str] = set()

    def add(self, keys: Sequence[str], scores: Tensor) -> None:
        """Take in scores `(B,)` of samples; of those that have visits enough to be flagged."""
        _raise_peaks(self.peak, keys, scores, self._visits(keys) >= self.minimum_visits)

    def add_early(self, keys: Sequence[str], scores: Tensor) -> None:
        """Take in scores `(B,)` of samples that may have fewer visits, where there is an early bulk."""
        if self.early is not None and self.early_visits is not None:
            _raise_peaks(self.early, keys, scores, self._visits(keys) >= self.early_visits)

    def _visits(self, keys: Sequence[str]) -> Tensor:
        return self.samples.fewest_visits(self.scored, self.samples.rows(keys))

    def peaks(self) -> Tensor:
        """Highest scores of the samples visited as often as most, `(n,)`; enough of them end the early bulk."""
        self.frequent |= frequent([key for key in self.peak if key not in self.frequent], self.samples, self.scored)
        peaks = [peak for key, peak in self.peak.items() if key not in self.frequent]
        if len(peaks) >= MINIMUM_BULK:
            self.early = None
        return torch.tensor(peaks, dtype=torch.float64)

    def early_peaks(self) -> Tensor:
        """The same of the early bulk, `(n,)`; empty where there is none."""
        early = self.early or {}
        # Told anew each time: where most have one visit, four come about by chance.
        often = self.frequent | frequent(list(early), self.samples, self.scored)
        return torch.tensor([peak for key, peak in early.items() if key not in often], dtype=torch.float64)

    def calibrating(self, peaks: Tensor) -> tuple[Tensor, float]:
        """The highest scores that set the threshold: :meth:`peaks`, or the early bulk's, and what divides the rate."""
        if self.early is None:
            return peaks, 1.0
        return self.early_peaks(), most_looks(self.samples, self.scored, minimum_visits=self.minimum_visits)

    def usual_visits(self) -> float:
        """Counted visits of a sample of the bulk, in the middle; 0 while there is none."""
        bulk = [key for key in self.peak if key not in self.frequent]
        return float(self._visits(bulk).median()) if bulk else 0.0

    def null(self) -> Tensor:
        """Highest scores that say what is ordinary, `(n,)`."""
        return torch.tensor(list(self.peak.values()), dtype=torch.float64) if self.early is None else self.early_peaks()

    def share_between_samples(self) -> Tensor:
        """Share of variance between samples `(columns,)`, where they calibrate alone."""
        share = self.samples.share_between_samples()
        return share if self.early is None else share.clamp(min=EARLY_SHARE)

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        early = None if self.early is None else dict(self.early)
        return {"peak": dict(self.peak), "frequent": sorted(self.frequent), "early": early}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.peak, self.frequent = dict(state["peak"]), set(state["frequent"])
        self.early = None if state["early"] is None else dict(state["early"])


def _raise_peaks(peaks: dict[str, float], keys: Sequence[str], scores: Tensor, counted: Tensor) -> None:
    for key, score, enough in zip(keys, scores.tolist(), counted.tolist(), strict=True):
        if enough:
            peaks[key] = max(score, peaks.get(key, -math.inf))
