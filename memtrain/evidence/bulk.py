"""The bulk: the highest scores of training samples with a usual number of visits.

A model learns all of its training samples better than held-out samples. A memorized sample stands out among the other
training samples. Early in a run, the samples with enough visits are all duplicates. So a sample with far more visits
than most never belongs to the bulk.

In a run without held-out samples only the bulk calibrates. If few images are repeated very often, 32 ordinary samples
have enough visits for a flag only after hundreds of visits to each of these images. Until then an *early bulk* of
samples with one counted visit takes their place, because evidence is on one scale for any number of visits. Two
unknowns are assumed on the safe side. At least a quarter of the variance lies between samples, because single visits do
not show this share. The stated rate is divided by the number of independent looks at the most visited sample, because
the others have few looks.

Cost: a few medians of at most 8,192 scores for an update with any number of samples. A uniform sample represents a
larger bulk (:mod:`memtrain.evidence.reservoir` states its error).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.running_means import Evidence, Rows
from memtrain.evidence.thresholds import MINIMUM_BULK

ORDINARY = 3
"""Largest number of visits of a sample of the bulk, as a multiple of the median."""
EARLY_VISITS = 1
"""Number of counted visits of a sample of the early bulk. No sample is flagged by so few visits."""
EARLY_SHARE = 0.25
"""Least share of the variance that lies between samples, during an early bulk."""
PEAK, EARLY, FREQUENT = "peak", "early", "frequent"
"""Names of the bulk's values by row of the evidence: two highest scores, minus infinity without a score, and a bool."""


def frequent(samples: Evidence, rows: Rows) -> Tensor:
    """Find samples that have been visited far more often than most, `(n,)` bool.

    Args:
        samples: evidence of the training samples.
        rows: rows of the samples.
    """
    return samples.fewest_visits(rows) > ORDINARY * samples.counts.median()


def looks(visits: float, window: int, *, minimum_visits: int) -> float:
    """Return the independent looks at a sample, at least 1, because its running mean is new after `window` visits.

    Args:
        visits: number of counted visits of the sample.
        window: number of visits that the evidence remembers.
        minimum_visits: counted visits before the first look.
    """
    return max(1.0, 1 + (visits - minimum_visits) / window)


def most_looks(samples: Evidence, *, minimum_visits: int) -> float:
    """Return the independent looks so far at the most visited sample.

    Args:
        samples: evidence of the training samples.
        minimum_visits: counted visits before the first look.
    """
    return looks(samples.counts.most, samples.window, minimum_visits=minimum_visits)


class Bulk:
    """Highest scores of training samples so far, kept by row of their evidence.

    Args:
        samples: evidence of the training samples.
        minimum_visits: counted visits before a sample can be flagged.
        early_visits: number of counted visits of a sample of the early bulk; None for no early bulk.

    Attributes:
        early: whether there is an early bulk; false once it is not needed any more.
    """

    def __init__(self, samples: Evidence, *, minimum_visits: int, early_visits: int | None) -> None:
        self.samples = samples
        self.minimum_visits, self.early_visits = minimum_visits, early_visits
        self.early = early_visits is not None
        samples.arrays.add(PEAK, -math.inf)
        samples.arrays.add(FREQUENT, False, dtype=torch.bool)
        if self.early:
            samples.arrays.add(EARLY, -math.inf)

    @property
    def peak(self) -> Tensor:
        """The highest scores of all samples with enough visits for a flag, `(n,)`; minus infinity for the others."""
        return self.samples.arrays[PEAK]

    def add(self, rows: Rows, scores: Tensor) -> None:
        """Take in scores `(B,)` of samples, each once; only samples with enough visits for a flag count."""
        self._raise(PEAK, rows, scores, self.minimum_visits)

    def add_early(self, rows: Rows, scores: Tensor) -> None:
        """Take in scores `(B,)` of samples with fewer visits, if there is an early bulk."""
        if self.early and self.early_visits is not None:
            self._raise(EARLY, rows, scores, self.early_visits)

    def _raise(self, name: str, rows: Rows, scores: Tensor, enough: int) -> None:
        counted = self.samples.fewest_visits(rows) >= enough
        chosen, peaks = torch.as_tensor(rows, dtype=torch.long)[counted], self.samples.arrays[name]
        peaks[chosen] = peaks[chosen].maximum(scores[counted])

    def _rows(self) -> Tensor:
        """Return the rows of the bulk, `(n,)`; samples visited far more often than most are left out for good."""
        rows, often = self.samples.sample(self.minimum_visits), self.samples.arrays[FREQUENT]
        rows = rows[(self.peak[rows] > -math.inf) & ~often[rows]]
        now = frequent(self.samples, rows)
        often[rows[now]] = True
        return rows[~now]

    def peaks(self) -> Tensor:
        """Return the highest scores of the bulk, `(n,)`; enough of them end the early bulk."""
        rows = self._rows()
        if len(rows) >= MINIMUM_BULK:
            self.early = False
        return self.peak[rows]

    def early_peaks(self) -> Tensor:
        """Return the highest scores of the early bulk, `(n,)`; empty without an early bulk."""
        if not self.early or self.early_visits is None:
            return self.peak[:0]
        rows = self.samples.sample(self.early_visits)
        peaks, often = self.samples.arrays[EARLY][rows], self.samples.arrays[FREQUENT][rows]
        # This is decided again each time, because four visits come by chance if most samples have one.
        return peaks[(peaks > -math.inf) & ~(often | frequent(self.samples, rows))]

    def calibrating(self, peaks: Tensor) -> tuple[Tensor, float]:
        """Return the scores that set the threshold, :meth:`peaks` or the early bulk's, and the rate's divisor."""
        if not self.early:
            return peaks, 1.0
        return self.early_peaks(), most_looks(self.samples, minimum_visits=self.minimum_visits)

    def usual_visits(self) -> float:
        """Return the median of counted visits in the bulk; 0 without a bulk."""
        rows = self.samples.sample(self.minimum_visits)
        rows = rows[(self.peak[rows] > -math.inf) & ~self.samples.arrays[FREQUENT][rows]]
        return float(self.samples.fewest_visits(rows).median()) if len(rows) else 0.0

    def null(self) -> Tensor:
        """Return the highest scores of ordinary samples, `(n,)`."""
        return self.early_peaks() if self.early else self.peak[self.peak > -math.inf]

    def share_between_samples(self) -> Tensor:
        """Return the share of variance between samples `(columns,)`, if only the bulk calibrates."""
        share = self.samples.share_between_samples()
        return share.clamp(min=EARLY_SHARE) if self.early else share

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors, 8 bytes a sample."""
        early = None
        if self.early and self.early_visits is not None:
            rows = self.samples.sample(self.early_visits)
            early = {"rows": rows.clone(), "peaks": self.samples.arrays[EARLY][rows]}
        often = self.samples.arrays[FREQUENT].nonzero()[:, 0]
        return {"peak": self.peak.clone(), "frequent": often, "early": early}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state, after the state of the evidence."""
        kept = state if isinstance(state["peak"], Tensor) else self._of_names(state)
        arrays = self.samples.arrays
        arrays[PEAK][:] = kept["peak"]
        arrays[FREQUENT][:] = False
        arrays[FREQUENT][kept["frequent"]] = True
        self.early = kept["early"] is not None and self.early_visits is not None
        if self.early:
            arrays[EARLY][:] = -math.inf
            arrays[EARLY][kept["early"]["rows"]] = kept["early"]["peaks"]

    def _of_names(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the state of an earlier version, which kept scores by name."""
        row = self.samples.row

        def of(scores: Mapping[str, float]) -> dict[str, Tensor]:
            rows = torch.tensor([row[key] for key in scores], dtype=torch.long)
            return {"rows": rows, "peaks": torch.tensor(list(scores.values()), dtype=torch.float64)}

        peaks, peak = of(state["peak"]), torch.full_like(self.peak, -math.inf)
        peak[peaks["rows"]] = peaks["peaks"]
        often = torch.tensor([row[key] for key in state["frequent"]], dtype=torch.long)
        return {"peak": peak, "frequent": often, "early": None if state["early"] is None else of(state["early"])}
