"""The way from evidence to flags, with a threshold for every sample, which is asked by its key.

Evidence is kept by picture, and also by sample and caption (:mod:`memtrain.evidence.levels`). Callers use keys only.
:mod:`memtrain.evidence.calibration` describes the threshold at the stated rate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from memtrain.evidence.bulk import looks
from memtrain.evidence.direction import Direction
from memtrain.evidence.levels import BESIDE, PICTURE, SAMPLE, Levels
from memtrain.evidence.running_means import Evidence, Rows, Sign, signed_score
from memtrain.evidence.standardisation import MOMENTS_WINDOW
from memtrain.evidence.thresholds import SharedRate
from memtrain.families.table import FamilyIndex

MEANS_VARIANCE = 1 / (2 * MOMENTS_WINDOW - 1)
"""Variance of the mean for the comparison of visits. A family has so many visits within its memory that all of them are
compared with the same mean, as are all families at one time. For a single sample the error averages out."""


class Judgement:
    """Scores, and flags for scores above their threshold.

    Args:
        columns: number of values per visit for all signals.
        scored: the columns that decide on flags.
        memorized_when: the sign of these columns; `unknown` if it differs.
        minimum_visits: number of counted visits before a sample can be flagged.
        window: number of visits that the evidence remembers.
        canaries: keys of samples that are known to be repeated.

    Attributes:
        samples: evidence of the training pictures.
        levels: the families of samples, the evidence of further levels, and flags.
        threshold: score above which a sample without family is flagged; infinite without a threshold.
        shared: thresholds at parts of the stated rate.
        taught: the direction learnt from canaries.
    """

    def __init__(
        self,
        columns: int,
        *,
        scored: slice,
        memorized_when: Sign,
        minimum_visits: int,
        window: int,
        canaries: Collection[str],
    ) -> None:
        self.scored, self.memorized_when, self.minimum_visits = scored, memorized_when, minimum_visits
        width = len(range(columns)[scored])
        self.samples = Evidence(width, window)
        self.levels, self.shared = Levels(None, columns=width, window=window), SharedRate()
        self.canaries = frozenset(canaries)
        self.taught = Direction(self.canaries, width=width, minimum_visits=minimum_visits)
        self.threshold = math.inf
        self._between = torch.zeros(width, dtype=torch.float64)

    def group_by(
        self, families: FamilyIndex | None, *, pictures: int | None = None, apart: Container[str] = ()
    ) -> Self:
        """Count pictures and captions by `families` instead of files; call it before the first visit.

        Args:
            families: the families; None without a scan.
            pictures: number of training pictures; None if unknown, as with streamed data.
            apart: keys of samples that are not trained on.
        """
        self.levels = Levels(families, columns=self.samples.columns, window=self.samples.window)
        self.levels.pictures, self.levels.apart = pictures, apart
        self.taught.canaries = frozenset(self.levels.pictures_of(self.canaries))
        return self

    @property
    def first_flagged(self) -> dict[str, int]:
        """The step of the first flag of each flagged sample, by key."""
        return self.levels.first_flagged

    @property
    def direction(self) -> Tensor | None:
        """The direction learnt from canaries, `(scored columns,)`; None before."""
        return self.taught.weights

    def _scores(self, evidence: Evidence, rows: Rows | None = None, *, common: Tensor | None = None) -> Tensor:
        scaled = evidence.scaled(self._between, rows, common=common)
        return signed_score(scaled, self.memorized_when) if self.direction is None else scaled @ self.direction

    def _scores_of(self, level: str, names: Sequence[str]) -> Tensor:
        """Return the scores of a level's families, `(B,)`; 0 for families without visits, which get no row."""
        evidence, common = self._evidence(level), None
        met = [place for place, name in enumerate(names) if name in evidence.row]
        rows, found = [evidence.row[names[place]] for place in met], torch.zeros(len(names), dtype=torch.float64)
        if self.levels.families is not None:
            several = [self.levels.is_family(level, names[place]) for place in met]
            common = MEANS_VARIANCE * torch.tensor(several, dtype=torch.float64)
        found[met] = self._scores(evidence, rows, common=common)
        return found

    def _visits_of(self, level: str, names: Sequence[str]) -> Tensor:
        """Return the counted visits of a level's families in the scored column with the fewest, `(B,)`."""
        evidence = self._evidence(level)
        met = [place for place, name in enumerate(names) if name in evidence.row]
        found = torch.zeros(len(names), dtype=torch.int32)
        found[met] = evidence.fewest_visits([evidence.row[names[place]] for place in met])
        return found

    def _evidence(self, level: str) -> Evidence:
        return self.samples if level == PICTURE else self.levels.beside[level]

    def _ready(self, evidence: Evidence, rows: Rows | None = None) -> Tensor:
        """Return whether samples have enough visits in every scored column, `(n,)` bool."""
        return evidence.fewest_visits(rows) >= self.minimum_visits

    def _judge_beside(self, keys: Sequence[str], values: Tensor, z: Tensor, step: int) -> None:
        """Use counted visits as evidence of samples and captions too, and flag the ones above their thresholds.

        Args:
            keys: B keys.
            values: compared values `(B, scored columns)`.
            z: the same values as z-scores.
            step: the step of the flags.
        """
        if self.levels.pictures is None:
            self.levels.see(self.samples.counts.seen)
        for level, names in self.levels.add(keys, values, z).items():
            self._judge(level, names, self._scores_of(level, names), step)

    def _judge(self, level: str, names: Sequence[str], scores: Tensor, step: int) -> None:
        """Flag the families of a level that are above their thresholds, with all their members."""
        visits = self._visits_of(level, names)
        # No threshold lies below the one at the stated rate.
        for place in ((visits >= self.minimum_visits) & (scores > self.threshold)).nonzero()[:, 0].tolist():
            if float(scores[place]) > self._threshold_of(level, names[place], float(visits[place])):
                self.levels.flag(level, names[place], step)

    def _threshold_of(self, level: str, name: str, visits: float) -> float:
        """Return the threshold of a family with this number of counted visits."""
        looked = 1.0
        if self.levels.is_family(level, name):
            looked = looks(visits, self.samples.window, minimum_visits=self.minimum_visits)
        return self.shared.at(self.threshold, parts=self.levels.parts(level, name), looks=looked)

    def __contains__(self, key: object) -> bool:
        """Return whether a sample's picture has been visited."""
        return isinstance(key, str) and self.levels.picture(key) in self.samples.row

    def scores(self, keys: Sequence[str]) -> Tensor:
        """Return the accumulated evidence of samples `(B,)`, 0 before the first counted visit.

        A sample with several levels gets the score of the level that is highest relative to its threshold. The score is
        shifted so that it is above `threshold` exactly if the level is above its own threshold.
        """
        return self._standing(keys)[0]

    def _standing(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return scores on the scale of the threshold, and whether there are enough visits for a flag, `(B,)` each."""
        names = self.levels.pictures_of(keys)
        scores, ready = self._scores_of(PICTURE, names), self._visits_of(PICTURE, names) >= self.minimum_visits
        if self.levels.families is None:
            return scores, ready
        scores = scores - self._shifts(PICTURE, names)
        for level in BESIDE:
            evidence = self.levels.beside[level]
            found = [(row, name) for row, key in enumerate(keys) if (name := self.levels.name(level, key)) is not None]
            found = [(row, name) for row, name in found if name in evidence.row]
            at, known = [row for row, _ in found], [name for _, name in found]
            beside = self._scores_of(level, known) - self._shifts(level, known)
            enough = self._visits_of(level, known) >= self.minimum_visits
            higher = enough & (~ready[at] | (beside > scores[at]))
            scores[at] = torch.where(higher, beside, scores[at])
            ready[at] |= enough
        return scores, ready

    def _shifts(self, level: str, names: Sequence[str]) -> Tensor:
        """Return the distance of families' thresholds above the one at the stated rate, `(B,)`."""
        if not math.isfinite(self.threshold):
            return torch.zeros(len(names), dtype=torch.float64)
        visits = self._visits_of(level, names).tolist()
        own = [self._threshold_of(level, name, count) for name, count in zip(names, visits, strict=True)]
        return torch.tensor(own, dtype=torch.float64) - self.threshold

    def highest_pictures(self, count: int) -> list[str]:
        """Return the training pictures with the highest scores, first the ones with enough visits for a flag."""
        visits = self.samples.fewest_visits()
        ready = visits >= self.minimum_visits
        found: list[int] = []
        for group in (ready, (visits > 0) & ~ready):
            if len(found) < count:
                found += self._highest(group.nonzero()[:, 0], count - len(found))
        return [self.samples.names[row] for row in found]

    def _highest(self, rows: Tensor, count: int) -> list[int]:
        """Return the `count` of `rows` with the highest scores, highest first, and the earlier of equal rows."""
        scores = self._scores(self.samples, rows)
        if self.levels.families is not None:
            # Only for the highest rows, the number of files of the picture is looked up. Each row has one of these two
            # scores.
            several = torch.full((len(rows),), MEANS_VARIANCE, dtype=torch.float64)
            scores = scores.maximum(self._scores(self.samples, rows, common=several))
        scores, taken = scores.nan_to_num(nan=-math.inf), min(len(rows), 4 * count)
        while True:
            likely = scores.topk(taken).indices.sort().values
            own = self._scores_of(PICTURE, [self.samples.names[row] for row in rows[likely].tolist()])
            order = own.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)[:count]
            if taken == len(rows) or float(own[order[-1]]) > float(scores[likely].min()):
                return rows[likely][order].tolist()
            taken = min(len(rows), 2 * taken)

    def _of_pictures(self, keys: Sequence[str], values: Tensor) -> Tensor:
        """Return for each sample its picture's entry in `values` `(n,)`; NaN without one, `(B,)`."""
        rows = [self.samples.row.get(name, len(values)) for name in self.levels.pictures_of(keys)]
        return torch.cat([values, torch.full((1,), math.nan, dtype=torch.float64)])[rows]

    def _state_of_families(self) -> dict[str, Any]:
        """Return the further entries of a state with families."""
        if self.levels.families is None:
            return {}
        return {"levels": self.levels.state_dict(), "shared": self.shared.state_dict()}

    def means(self, keys: Sequence[str]) -> Tensor:
        """Return the mean compared values of each sample's own counted visits, `(B, scored columns)`, or NaN."""
        found = torch.full((len(keys), self.samples.columns), math.nan, dtype=torch.float64)
        # A file of a picture with several files has its own evidence.
        several = [self.levels.name(SAMPLE, key) is not None for key in keys]
        for evidence, wanted in ((self.samples, False), (self.levels.beside[SAMPLE], True)):
            own = [row for row, key in enumerate(keys) if several[row] is wanted and key in evidence.row]
            rows = [evidence.row[keys[row]] for row in own]
            found[own] = evidence.total[rows] / evidence.visits[rows]
        return found

    def counted_visits(self, keys: Sequence[str]) -> list[int]:
        """Return the counted visits of each sample's picture in the scored column with the fewest."""
        return [int(count) for count in self._visits_of(PICTURE, self.levels.pictures_of(keys)).tolist()]

    def judged(self, keys: Sequence[str]) -> Tensor:
        """Return whether each sample's picture has enough visits for a flag, `(B,)` bool."""
        return torch.tensor([visits >= self.minimum_visits for visits in self.counted_visits(keys)], dtype=torch.bool)

    def ready(self, keys: Sequence[str]) -> Tensor:
        """Return whether each sample, its picture or its caption has enough visits for a flag, `(B,)` bool."""
        return self.judged(keys) if self.levels.families is None else self._standing(keys)[1]

    def flagged(self, keys: Sequence[str]) -> Tensor:
        """Return whether each sample, its picture or its caption is above its threshold now, `(B,)` bool."""
        scores, ready = self._standing(keys)
        return (scores > self.threshold) & ready

    def ever_flagged(self, keys: Sequence[str]) -> Tensor:
        """Return whether each sample, its picture or its caption was ever above its threshold, `(B,)` bool."""
        return torch.tensor([self.levels.is_flagged(key) for key in keys], dtype=torch.bool)

    def share_flagged(self) -> float:
        """Return the flagged share of all training pictures, or of the pictures seen so far if the total is unknown."""
        pictures = self.levels.pictures or len(self.samples.row)
        return len(self.levels.flagged_pictures) / pictures if pictures else 0.0

    def power(self) -> tuple[int, int]:
        """Return the numbers of flagged canaries and of canaries, which estimate the power for repeated samples."""
        return sum(key in self.first_flagged for key in self.canaries), len(self.canaries)
