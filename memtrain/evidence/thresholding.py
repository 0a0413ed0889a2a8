"""The threshold at the stated rate, which held-out samples and the bulk set again and again.

It is set on the highest score that each held-out sample ever reached, and the rate is spent over the run
(:mod:`memtrain.evidence.thresholds`). It does not lie below the bulk of the training samples
(:mod:`memtrain.evidence.bulk`), which alone sets it without held-out samples.

Cost: a few sums over the held-out samples and over at most 8,192 training pictures.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Tensor

from memtrain.evidence.bulk import EARLY_SHARE, EARLY_VISITS, Bulk, looks, most_looks
from memtrain.evidence.heldout_peaks import HeldoutPeaks
from memtrain.evidence.judgement import Judgement
from memtrain.evidence.running_means import Evidence, Sign
from memtrain.evidence.thresholds import (
    BULK_FREEDOM,
    SharedRate,
    Spending,
    apart_from_themselves,
    bulk_threshold,
    require_rate,
)


class Thresholding(Judgement):
    """Sets the threshold for samples.

    Args:
        columns: number of values per visit for all signals.
        scored: the columns that decide on flags.
        memorized_when: the sign of these columns; `unknown` if it differs.
        false_positive_rate: share of held-out-like samples that may be flagged over a whole run.
        minimum_visits: number of counted visits before a sample can be flagged.
        window: number of visits that the evidence remembers.
        heldout: whether held-out samples calibrate, or else the bulk of the training samples.
        calibrating_visits: number of counted visits before a sample's scores may set the threshold; None for the
            default.
        canaries: keys of samples that are known to be repeated.

    Attributes:
        heldout: evidence of the held-out samples; None if they do not calibrate.
        peaks: their highest scores.
        spending: the held-out samples that have had the highest scores so far.
        bulk: highest scores of the training samples.
    """

    def __init__(
        self,
        columns: int,
        *,
        scored: slice,
        memorized_when: Sign,
        false_positive_rate: float,
        minimum_visits: int,
        window: int,
        heldout: bool,
        calibrating_visits: int | None,
        canaries: Collection[str],
    ) -> None:
        require_rate(false_positive_rate)
        super().__init__(
            columns,
            scored=scored,
            memorized_when=memorized_when,
            minimum_visits=minimum_visits,
            window=window,
            canaries=canaries,
        )
        self.false_positive_rate = false_positive_rate
        self.heldout = Evidence(self.samples.columns, window) if heldout else None
        usual = minimum_visits if heldout else min(EARLY_VISITS, minimum_visits)
        self.calibrating_visits = usual if calibrating_visits is None else calibrating_visits
        early = None if heldout else self.calibrating_visits
        self.bulk = Bulk(self.samples, minimum_visits=minimum_visits, early_visits=early)
        self.peaks, self.spending = HeldoutPeaks(self.heldout), Spending()

    @property
    def highest(self) -> dict[str, float]:
        """Return the highest score of each held-out sample with enough visits, in the order of reaching them."""
        return self.peaks.by_key()

    def untaught(self) -> tuple[int, int] | None:
        """Return the numbers of usable canaries and ordinary samples, if a direction was needed but not learnt."""
        if self.memorized_when != "unknown" or not self.canaries or self.heldout is None or self.direction is not None:
            return None
        positive, negative = self.taught.taught_by(self.samples, self.levels.flagged_pictures)
        return len(positive), len(negative)

    def _set_threshold(self, peaks: Tensor) -> None:
        rate, minimum, window = self.false_positive_rate, self.minimum_visits, self.samples.window
        calibrating, divided = self.bulk.calibrating(peaks)
        # The divisor of its rate makes an early bulk strict enough.
        freedom = BULK_FREEDOM if self.heldout is None and not self.bulk.early else math.inf
        bulk = bulk_threshold(calibrating, rate / divided, freedom=freedom)
        self.shared = SharedRate(bulk=calibrating, bulk_rate=rate / divided, freedom=freedom)
        if self.heldout is None:
            self.threshold = self.threshold if bulk is None else bulk
            if self.levels.families is not None:
                usual = looks(self.bulk.usual_visits(), window, minimum_visits=minimum)
                self.shared.looks = divided if self.bulk.early else usual
            return
        self.shared.heldout_rate, found = self._spend(self.heldout)
        self.shared.heldout = self._null()
        self.threshold = self.threshold if found is None else found
        if math.isfinite(self.threshold) and bulk is not None:
            self.threshold = max(self.threshold, bulk)
        if self.levels.families is not None and len(self.shared.heldout):
            visits = float(self.heldout.fewest_visits(self.peaks.rows()).median())
            early, looked = self._calibrates_early(self.heldout), looks(visits, window, minimum_visits=minimum)
            self.shared.looks = most_looks(self.samples, minimum_visits=minimum) if early else looked

    def _spend(self, heldout: Evidence) -> tuple[float, float | None]:
        """Name the leading held-out samples; return the rate at which they set a threshold, and the threshold."""
        early, rows = self._calibrates_early(heldout), self.peaks.rows()
        rate = self.false_positive_rate / (
            most_looks(self.samples, minimum_visits=self.minimum_visits) if early else 1.0
        )
        return rate, self.spending.threshold(lambda place: heldout.names[int(rows[place])], self._null(), rate)

    def _calibrates_early(self, heldout: Evidence) -> bool:
        """Return whether held-out samples set the threshold, as requested, before all have enough visits for a flag."""
        return self.calibrating_visits < self.minimum_visits and self.heldout_ready() < len(heldout.row)

    def _share_between(self, heldout: Evidence) -> Tensor:
        share = heldout.share_between_samples()
        return share.clamp(min=EARLY_SHARE) if self._calibrates_early(heldout) else share

    def heldout_ready(self) -> int:
        """The number of held-out samples with enough visits, the same on every process."""
        return 0 if self.heldout is None else int(self._ready(self.heldout).sum())

    def _null(self) -> Tensor:
        """Return the highest scores of the held-out samples, corrected to the scale of other samples, `(n,)`."""
        found, signed = self.peaks.scores(), self.memorized_when != "unknown" or self.direction is not None
        return found if signed else found * apart_from_themselves(len(found))
