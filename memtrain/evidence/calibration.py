"""The way from signal values to flags: evidence per sample over visits, calibrated on held-out samples.

1. A visit's values are compared with the sample's values under the base model (:mod:`memtrain.evidence.base_profile`).
   Visits at high noise separate no samples and are left out.
2. Held-out samples are measured at regular steps under the current model. They give each timestep bucket a mean and a
   standard deviation that follow the model. Every visit becomes a z-score against these, which removes the effect of
   training on images in general. A second standardisation, within classes of prompt length, removes the effect on short
   and on long captions.
3. Evidence is the mean z over a sample's last visits (:mod:`memtrain.evidence.running_means`).
4. A signal of known sign scores by the signed evidence. A signal whose sites differ in sign scores by the mean square
   over sites, or along the direction learnt from canaries (:mod:`memtrain.evidence.direction`).
5. The threshold is set on the highest score that each held-out sample ever reached. The rate is spent over the run, so
   that it holds for a whole run and not for one look (:mod:`memtrain.evidence.thresholds`).
6. The threshold also lies above the bulk of the training samples (:mod:`memtrain.evidence.bulk`), because a model
   learns all of its training samples better than held-out samples.

All counts are counts of pictures. A visit is evidence of its picture under any file name, and of two further levels,
the single sample and the caption (:mod:`memtrain.evidence.levels`). A sample is flagged if it, its picture or its
caption is. The stated rate holds for the three levels together. Each level is judged at its part of the rate, and a
family also by its larger number of looks. Evidence of a family has the variance of a single sample's evidence, the
worst case of equal members. Held-out samples, bulk and canaries are pictures too. A sample without family is its own
picture, and data without families are counted by samples.

A single noisy visit flags no sample, because flags begin at `minimum_visits`. Without held-out samples the training
samples themselves are the null. Every visit updates the moments, and the threshold is set on the bulk only, and early
in a run on samples with a single visit. This finds outliers among the training samples, and promises nothing.
:mod:`memtrain.evidence.measured_rates` has the shares of ordinary samples flagged in simulation.

Every process takes in the visits of all processes in the same order, so calibration is the same on all of them.

Cost: the visits of an update, and sums over the held-out samples (at most 2,000 by default) and 8,192 training
pictures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from memtrain.evidence.bulk import EARLY_SHARE
from memtrain.evidence.copies import Copies
from memtrain.evidence.levels import PICTURE
from memtrain.evidence.running_means import Sign
from memtrain.evidence.set_curve import SetCurve
from memtrain.evidence.standardisation import Standardisation
from memtrain.evidence.thresholding import Thresholding
from memtrain.evidence.thresholds import SharedRate, corrected_p_values
from memtrain.functional.moments import DriftingMoments

Lengths = Sequence[float] | None
"""Prompt lengths, tokens; NaN or None if unknown."""


class Calibration(Thresholding):
    """Flags samples at a stated false-positive rate.

    Args:
        columns: number of values per visit for all signals, or the smallest meaningful spread of each column,
            `(columns,)`.
        scored: the columns that decide on flags.
        memorized_when: the sign of these columns; `unknown` if it differs.
        buckets: number of timestep buckets.
        false_positive_rate: share of held-out-like samples that may be flagged over a whole run.
        minimum_visits: number of counted visits before a sample can be flagged.
        window: number of visits that the evidence remembers.
        heldout: whether held-out samples calibrate, or else the bulk of the training samples.
        calibrating_visits: number of counted visits before a sample's scores may set the threshold. The default is
            `minimum_visits` for held-out samples and one for the bulk. Fewer visits make the assumptions of an early
            bulk (:mod:`memtrain.evidence.bulk`).
        edges: prompt lengths at which a new class begins (:func:`~memtrain.evidence.standardisation.length_edges`).
        canaries: keys of samples that are known to be repeated. They set the direction if the sign is unknown.
    """

    def __init__(
        self,
        columns: int | Tensor,
        *,
        scored: slice,
        memorized_when: Sign,
        buckets: int,
        false_positive_rate: float = 0.01,
        minimum_visits: int = 6,
        window: int = 12,
        heldout: bool = True,
        calibrating_visits: int | None = None,
        edges: Sequence[int] = (),
        canaries: Collection[str] = (),
    ) -> None:
        resolution = columns if isinstance(columns, Tensor) else None
        columns = len(columns) if isinstance(columns, Tensor) else columns
        super().__init__(
            columns,
            scored=scored,
            memorized_when=memorized_when,
            false_positive_rate=false_positive_rate,
            minimum_visits=minimum_visits,
            window=window,
            heldout=heldout,
            calibrating_visits=calibrating_visits,
            canaries=canaries,
        )
        self.standardisation = Standardisation(columns, buckets=buckets, edges=edges, resolution=resolution)
        self.curve, self.copies = SetCurve(columns, buckets), Copies()

    @property
    def moments(self) -> DriftingMoments:
        """The moments of the compared values, by timestep bucket."""
        return self.standardisation.moments

    def add_heldout(
        self,
        keys: Sequence[str],
        buckets: Sequence[int],
        values: Tensor,
        lengths: Lengths = None,
        *,
        more: bool = False,
    ) -> None:
        """Take in visits of held-out samples under the current model, `(B, columns)`, and set the threshold again.

        Args:
            keys: B keys.
            buckets: B timestep buckets.
            values: compared values, NaN where there is none.
            lengths: B prompt lengths.
            more: whether visits of another process follow in the same update. The threshold is set after the last.
        """
        assert self.heldout is not None
        lengths = [math.nan] * len(keys) if lengths is None else lengths
        values, names = values.double(), self.levels.pictures_of(keys)
        self.curve.add_heldout(buckets, values)
        z = self.copies.take(keys, self.standardisation.follow(buckets, lengths, values))
        self.heldout.add(self.heldout.rows(names), values[:, self.scored], z[:, self.scored])
        self._between = self._share_between(self.heldout)
        if self.memorized_when == "unknown" and self.canaries and not more:
            self.taught.fit(self.samples, self.levels.flagged_pictures, between=self._between)
        self.peaks.add(self._scores(self.heldout), self.heldout.fewest_visits() >= self.calibrating_visits)
        if more:
            self._spend(self.heldout)
        else:
            self._set_threshold(self.bulk.peaks())

    def add(
        self,
        keys: Sequence[str],
        buckets: Sequence[int | None],
        values: Tensor,
        step: int,
        lengths: Lengths = None,
    ) -> None:
        """Take in visits of training samples, `(B, columns)`; a bucket of None leaves a visit out.

        Args:
            keys: B keys.
            buckets: B timestep buckets.
            values: compared values, NaN where there is none.
            step: the first flagged step of samples that cross the threshold now.
            lengths: B prompt lengths.
        """
        self.curve.add(buckets, values, step)
        counted = [index for index, bucket in enumerate(buckets) if bucket is not None]
        known, names = [math.nan] * len(keys) if lengths is None else lengths, self.levels.pictures_of(keys)
        rows, values = self.samples.rows(names), values[counted].double()
        given = self.standardisation
        standardise = given.standardise if self.heldout is not None else given.follow
        z = standardise([int(buckets[i] or 0) for i in counted], [known[i] for i in counted], values)
        z = self.copies.relative([names[i] for i in counted], z)
        values, scored = values[:, self.scored], z[:, self.scored]
        self.samples.add([rows[i] for i in counted], values, scored)
        touched = [names[i] for i, nothing in zip(counted, z.isnan().all(dim=1).tolist(), strict=True) if not nothing]
        touched = list(dict.fromkeys(touched))
        scores = self._judged_by_bulk(touched)
        self._judge(PICTURE, touched, scores, step)
        if self.levels.families is not None:
            self._judge_beside([keys[i] for i in counted], values, scored, step)
            self.levels.adopt(keys)

    def _judged_by_bulk(self, names: Sequence[str]) -> Tensor:
        """Add the scores of pictures after a visit to the bulk, which sets the threshold if only it calibrates."""
        rows, alone = self.samples.rows(names), self.heldout is None
        if alone:
            share = self._between = self.samples.share_between_samples()
        scores = self._scores_of(PICTURE, names)
        self.bulk.add(rows, scores)
        if alone:
            peaks = self.bulk.peaks()
            if self.bulk.early:
                self._between = share.clamp(min=EARLY_SHARE)
                scores = self._scores_of(PICTURE, names)
                self.bulk.add_early(rows, scores)
            self._set_threshold(peaks)
        return scores

    def p_values(self, keys: Sequence[str]) -> Tensor:
        """Return the probability that a picture without memorization scores as high at any time in the run, `(B,)`.

        It is the lowest rate at which the picture's highest score would be above the threshold of the held-out samples
        (or of the bulk), corrected for the number of training pictures by Holm's method. A score above all n held-out
        samples gets 1/(n + 1) at most, and less the further it lies above. The value is NaN for samples with too few
        visits, and for all samples if too few scores, or equal scores, show their spread. Unlike the threshold, it does
        not remove the effect of training on all training samples. So in a long run it is smaller than a flag suggests.
        """
        held = None if self.heldout is None else self._null()
        return self._of_pictures(keys, corrected_p_values(self.bulk.peak, heldout=held, bulk=self.bulk.null()))

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        return {
            "samples": self.samples.state_dict(),
            "heldout": self.heldout.state_dict() if self.heldout is not None else {},
            "moments": self.moments.state_dict(),
            "length_moments": self.standardisation.length_moments.state_dict(),
            "highest": self.peaks.state_dict(),
            "named": sorted(self.spending.named),
            "threshold": self.threshold,
            "first_flagged": dict(self.first_flagged),
            "curve": self.curve.state_dict(),
            "copies": self.copies.state_dict(),
            "direction": self.taught.weights,
            "separation": self.taught.separation,
            **self.bulk.state_dict(),
            **self._state_of_families(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.samples.load_state_dict(state["samples"], self.scored)
        if self.heldout is not None:
            self.heldout.load_state_dict(state["heldout"], self.scored)
        self.moments.load_state_dict(state["moments"])
        self.standardisation.length_moments.load_state_dict(state["length_moments"])
        self.peaks.load_state_dict(state["highest"])
        self.threshold = state["threshold"]
        self.spending.named = set(state.get("named", ()))
        self.levels.load_state_dict(state.get("levels"), state["first_flagged"], self.scored)
        self.shared = SharedRate(**state.get("shared", {}))
        self.bulk.load_state_dict(state)
        self.curve.load_state_dict(state["curve"])
        self.copies.load_state_dict(state["copies"])
        self.taught.weights, self.taught.separation = state["direction"], state["separation"]
        self._between = self.bulk.share_between_samples() if self.heldout is None else self._share_between(self.heldout)
