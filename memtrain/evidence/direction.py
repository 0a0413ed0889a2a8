"""The direction of evidence in which repeated samples stand out, learnt from canaries.

A signal whose sites differ in sign says only how unusual a sample is. Canaries are samples that are known to be
repeated, and they show the effect of repetition on each value. The direction is learnt as soon as four canaries have
enough visits for a flag, and 32 ordinary samples (or two for each value) have three visits. A sample is ordinary if it
is neither flagged nor visited far more often than most, as unknown duplicates are. A later direction replaces it if it
separates canaries outside of its fit 1.25 times as far.

Cost: a discriminant per canary at each update, from at most 8,192 ordinary samples or a uniform sample of so many
(:mod:`memtrain.evidence.reservoir`).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from memtrain.errors import CalibrationError
from memtrain.evidence.bulk import frequent
from memtrain.evidence.running_means import Evidence
from memtrain.evidence.thresholds import MINIMUM_BULK
from memtrain.functional.statistics import discriminant, left_out_separation

MINIMUM_CANARIES = 4
"""Least number of canaries for a direction."""
ORDINARY_VISITS = 3
"""Number of counted visits of the ordinary samples. It is lower than for a flag, because no sample is judged by them.
"""
GAIN = 1.25
"""Factor by which a new direction must separate better than the current one to replace it."""


class Direction:
    """The direction that separates canaries from ordinary samples best.

    Args:
        canaries: keys of samples that are known to be repeated.
        width: number of columns that decide on flags.
        minimum_visits: number of counted visits before a canary is used.

    Attributes:
        weights: the direction `(width,)`; None without one.
        separation: distance of canaries outside of the fit from ordinary samples, in standard deviations of the
            ordinary samples.
    """

    def __init__(self, canaries: Collection[str], *, width: int, minimum_visits: int) -> None:
        self.canaries, self.width = frozenset(canaries), width
        self.minimum_visits = minimum_visits
        self.weights: Tensor | None = None
        self.separation = 0.0

    def ordinary_needed(self) -> int:
        """The least number of ordinary samples for a direction."""
        return max(MINIMUM_BULK, 2 * self.width)

    def require_teachable(self, ordinary: int | None, *, heldout: bool) -> None:
        """Refuse too few canaries or other samples for a direction, before any work is done.

        Args:
            ordinary: number of training samples that are no canaries; None if unknown.
            heldout: whether there are held-out samples.

        Raises:
            CalibrationError: if there are too few, or no held-out samples.
        """
        needed = self.ordinary_needed()
        few = ordinary is not None and ordinary < needed
        if heldout and len(self.canaries) >= MINIMUM_CANARIES and not few:
            return
        others = "" if ordinary is None else f", {ordinary} other training samples"
        raise CalibrationError(
            f"flag_by: combined with {len(self.canaries)} canaries{others}"
            f"{'' if heldout else ' and no held-out samples'}",
            expected=f"at least {MINIMUM_CANARIES} canaries for the weights of the signals, {needed} other training "
            "samples, and held-out samples",
            remedy="set data.init_args.canaries, train on more samples, or set flag_by to one signal",
        )

    def taught_by(self, samples: Evidence, flagged: Collection[str]) -> tuple[list[int], list[int]]:
        """Return the rows of canaries and of ordinary samples with enough visits for a direction.

        Args:
            samples: evidence of the training samples.
            flagged: keys of all samples that were ever flagged.
        """
        known = torch.tensor(sorted(samples.row[key] for key in self.canaries if key in samples.row), dtype=torch.long)
        positive = known[samples.fewest_visits(known) >= self.minimum_visits]
        # Held-out samples are left out, because a fit to them would set their own scores and the threshold too low.
        # Samples with more visits than most are left out too. Early in a run they are duplicates like the canaries.
        rows = samples.sample(ORDINARY_VISITS)
        rows = rows[(samples.fewest_visits(rows) >= ORDINARY_VISITS) & ~frequent(samples, rows)]
        names = [(row, samples.names[row]) for row in rows.tolist()]
        return positive.tolist(), [row for row, name in names if name not in self.canaries and name not in flagged]

    def fit(self, samples: Evidence, flagged: Collection[str], *, between: Tensor) -> None:
        """Update the direction, if canaries stand out more now than at all moments before.

        Args:
            samples: evidence of the training samples.
            flagged: keys of all samples that were ever flagged.
            between: share of the variance between samples, `(width,)`.
        """
        positive, negative = self.taught_by(samples, flagged)
        if len(positive) < MINIMUM_CANARIES or len(negative) < self.ordinary_needed():
            return
        known, others = samples.scaled(between, positive), samples.scaled(between, negative)
        separation = left_out_separation(known, others)
        # Flagged canaries that are skipped become like other samples again, so the direction of their best moment is
        # kept. Every direction has its own highest scores, which stay in the threshold, so a small gain is not worth a
        # new one.
        if separation > GAIN * self.separation:
            self.weights, self.separation = discriminant(known, others)[0], separation
