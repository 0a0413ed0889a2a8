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

Cost: of an update, a few medians of at most 8,192 scores, however many samples there are: the bulk of more is told by a
uniform sample of them (:mod:`memtrain.evidence.reservoir` says with what error), that of fewer by all.
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
"""Times the median number of visits that a sample of the bulk may have."""
EARLY_VISITS = 1
"""Counted visits of a sample of the early bulk; nobody is flagged by so few."""
EARLY_SHARE = 0.25
"""Least share of the variance that lies between samples, while there is an early bulk."""
PEAK, EARLY, FREQUENT = "peak", "early", "frequent"
"""Names of what the bulk keeps by row of the evidence: two highest scores, minus infinity without one, and a bool."""


def frequent(samples: Evidence, rows: Rows) -> Tensor:
    """Which samples have been visited far more often than most, `(n,)` bool.

    Args:
        samples: evidence of the training samples.
        rows: of the samples that are asked for.
    """
    return samples.fewest_visits(rows) > ORDINARY * samples.counts.median()


def looks(visits: float, window: int, *, minimum_visits: int) -> float:
    """Independent looks at a sample, at least 1: its running mean is another one after each `window` visits.

    Args:
        visits: counted visits of the sample.
        window: visits that the evidence remembers.
        minimum_visits: counted visits before the first look.
    """
    return max(1.0, 1 + (visits - minimum_visits) / window)


def most_looks(samples: Evidence, *, minimum_visits: int) -> float:
    """Independent looks so far at the sample that is visited most.

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
        early_visits: counted visits of a sample of the early bulk; None if there is to be none.

    Attributes:
        early: whether there is an early bulk; not once it is no longer needed.
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
        """Highest scores of all samples with visits enough to be flagged, `(n,)`; minus infinity of the others."""
        return self.samples.arrays[PEAK]

    def add(self, rows: Rows, scores: Tensor) -> None:
        """Take in scores `(B,)` of samples, each once; of those that have visits enough to be flagged."""
        self._raise(PEAK, rows, scores, self.minimum_visits)

    def add_early(self, rows: Rows, scores: Tensor) -> None:
        """Take in scores `(B,)` of samples that may have fewer visits, where there is an early bulk."""
        if self.early and self.early_visits is not None:
            self._raise(EARLY, rows, scores, self.early_visits)

    def _raise(self, name: str, rows: Rows, scores: Tensor, enough: int) -> None:
        counted = self.samples.fewest_visits(rows) >= enough
        chosen, peaks = torch.as_tensor(rows, dtype=torch.long)[counted], self.samples.arrays[name]
        peaks[chosen] = peaks[chosen].maximum(scores[counted])

    def _rows(self) -> Tensor:
        """Samples of the bulk, those visited far more often than most left out once and for all, `(n,)`."""
        rows, often = self.samples.sample(self.minimum_visits), self.samples.arrays[FREQUENT]
        rows = rows[(self.peak[rows] > -math.inf) & ~often[rows]]
        now = frequent(self.samples, rows)
        often[rows[now]] = True
        return rows[~now]

    def peaks(self) -> Tensor:
        """Highest scores of the samples visited as often as most, `(n,)`; enough of them end the early bulk."""
        rows = self._rows()
        if len(rows) >= MINIMUM_BULK:
            self.early = False
        return self.peak[rows]

    def early_peaks(self) -> Tensor:
        """The same of the early bulk, `(n,)`; empty where there is none."""
        if not self.early or self.early_visits is None:
            return self.peak[:0]
        rows = self.samples.sample(self.early_visits)
        peaks, often = self.samples.arrays[EARLY][rows], self.samples.arrays[FREQUENT][rows]
        # Told anew each time: where most have one visit, four come about by chance.
        return peaks[(peaks > -math.inf) & ~(often | frequent(self.samples, rows))]

    def calibrating(self, peaks: Tensor) -> tuple[Tensor, float]:
        """The highest scores that set the threshold: :meth:`peaks`, or the early bulk's, and what divides the rate."""
        if not self.early:
            return peaks, 1.0
        return self.early_peaks(), most_looks(self.samples, minimum_visits=self.minimum_visits)

    def usual_visits(self) -> float:
        """Counted visits of a sample of the bulk, in the middle; 0 while there is none."""
        rows = self.samples.sample(self.minimum_visits)
        rows = rows[(self.peak[rows] > -math.inf) & ~self.samples.arrays[FREQUENT][rows]]
        return float(self.samples.fewest_visits(rows).median()) if len(rows) else 0.0

    def null(self) -> Tensor:
        """Highest scores that say what is ordinary, `(n,)`."""
        return self.early_peaks() if self.early else self.peak[self.peak > -math.inf]

    def share_between_samples(self) -> Tensor:
        """Share of variance between samples `(columns,)`, where they calibrate alone."""
        share = self.samples.share_between_samples()
        return share.clamp(min=EARLY_SHARE) if self.early else share

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: 8 bytes a sample."""
        early = None
        if self.early and self.early_visits is not None:
            rows = self.samples.sample(self.early_visits)
            early = {"rows": rows.clone(), "peaks": self.samples.arrays[EARLY][rows]}
        often = self.samples.arrays[FREQUENT].nonzero()[:, 0]
        return {"peak": self.peak.clone(), "frequent": often, "early": early}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state, after that of the evidence."""
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
        """The state of an earlier version, which kept scores by name."""
        row = self.samples.row

        def of(scores: Mapping[str, float]) -> dict[str, Tensor]:
            rows = torch.tensor([row[key] for key in scores], dtype=torch.long)
            return {"rows": rows, "peaks": torch.tensor(list(scores.values()), dtype=torch.float64)}

        peaks, peak = of(state["peak"]), torch.full_like(self.peak, -math.inf)
        peak[peaks["rows"]] = peaks["peaks"]
        often = torch.tensor([row[key] for key in state["frequent"]], dtype=torch.long)
        return {"peak": peak, "frequent": often, "early": None if state["early"] is None else of(state["early"])}
