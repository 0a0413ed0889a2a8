"""What canaries teach: the direction of evidence in which repeated samples stand out.

A signal whose sites differ in sign says only how unusual a sample is. Canaries, samples that are known to be repeated,
say which way repetition moves each value. The direction is learnt as soon as four canaries have visits enough to be
flagged, and 32 ordinary samples (or two for each value) three visits; ordinary are those that are neither flagged nor
visited far more often than most, as the duplicates are that nobody knows of. A later direction takes over where it
separates canaries that it was not fitted to 1.25 times as far.

Cost: a discriminant per canary at each update, from at most 8,192 ordinary samples: of more, a uniform sample of them
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
"""Canaries below which no direction is fitted to them."""
ORDINARY_VISITS = 3
"""Counted visits of the samples that canaries are told from: fewer than a flag needs, as nobody is judged by them."""
GAIN = 1.25
"""Times the separation of the direction at hand that another one has to reach to take its place."""


class Direction:
    """The direction that separates canaries from ordinary samples best.

    Args:
        canaries: keys of samples that are known to be repeated.
        width: number of the columns that flags go by.
        minimum_visits: counted visits before a canary teaches.

    Attributes:
        weights: `(width,)`; None until there is one.
        separation: of canaries that it was not fitted to from ordinary samples, in standard deviations of these.
    """

    def __init__(self, canaries: Collection[str], *, width: int, minimum_visits: int) -> None:
        self.canaries, self.width = frozenset(canaries), width
        self.minimum_visits = minimum_visits
        self.weights: Tensor | None = None
        self.separation = 0.0

    def ordinary_needed(self) -> int:
        """Samples beside the canaries that a direction is learnt from at the least."""
        return max(MINIMUM_BULK, 2 * self.width)

    def require_teachable(self, ordinary: int | None, *, heldout: bool) -> None:
        """Refuse canaries and other samples that are too few to learn a direction from, before any work is done.

        Args:
            ordinary: training samples that are no canaries; None if unknown.
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
            expected=f"at least {MINIMUM_CANARIES} canaries, to weight the signals by, {needed} training samples to "
            "tell them from, and held-out samples",
            remedy="set data.init_args.canaries, train on more samples, or flag by one signal",
        )

    def taught_by(self, samples: Evidence, flagged: Collection[str]) -> tuple[list[int], list[int]]:
        """Rows of the canaries and of the ordinary samples that have visits enough to teach a direction.

        Args:
            samples: evidence of the training samples.
            flagged: keys of those that have ever been flagged.
        """
        known = torch.tensor(sorted(samples.row[key] for key in self.canaries if key in samples.row), dtype=torch.long)
        positive = known[samples.fewest_visits(known) >= self.minimum_visits]
        # Not the held-out samples: a direction fitted to them would set their own scores, and the threshold, too low.
        # Nor samples that are visited more than most: early in a run these are the duplicates that canaries stand for.
        rows = samples.sample(ORDINARY_VISITS)
        rows = rows[(samples.fewest_visits(rows) >= ORDINARY_VISITS) & ~frequent(samples, rows)]
        names = [(row, samples.names[row]) for row in rows.tolist()]
        return positive.tolist(), [row for row, name in names if name not in self.canaries and name not in flagged]

    def fit(self, samples: Evidence, flagged: Collection[str], *, between: Tensor) -> None:
        """Take the direction in which canaries stand out most, of all moments so far.

        Args:
            samples: evidence of the training samples.
            flagged: keys of those that have ever been flagged.
            between: `(width,)` share of the variance that lies between samples.
        """
        positive, negative = self.taught_by(samples, flagged)
        if len(positive) < MINIMUM_CANARIES or len(negative) < self.ordinary_needed():
            return
        known, others = samples.scaled(between, positive), samples.scaled(between, negative)
        separation = left_out_separation(known, others)
        # Canaries that are skipped once flagged come to look like any sample again; they taught at their most distinct.
        # Every direction has its own highest scores, which stay in the threshold, so small gains are not worth another.
        if separation > GAIN * self.separation:
            self.weights, self.separation = discriminant(known, others)[0], separation
