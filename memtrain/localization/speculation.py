"""Evaluation ahead: follow a search whose next mask depends on the last score, with several masks at once.

The next masks are known for either outcome of a score, so the most probable ones are evaluated in the same batch. The
path is the same as with one mask at a time. The probability of an outcome is estimated from the outcomes so far.
Unneeded evaluations cost only time; their scores are kept in case the set is needed later.

A mask is above the threshold as soon as one seed is. If a seed can be scored alone, masks that are less likely to be
needed or to be below are first scored on one seed: the seed with the highest similarity so far.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from memtrain.localization.selection import Lists, Mask, mask_of

Below = Callable[[float], bool]
"""Function from a score to the answer: true up to some score, false beyond."""


class Search(Protocol):
    """A point in a search: a selection or a refinement (:mod:`memtrain.localization.selection`, `refinement`)."""

    @property
    def done(self) -> bool:
        """Whether the search has ended."""

    @property
    def margin(self) -> float:
        """Margin that is added to the score of this set before the answer."""

    def hypothesis(self) -> Lists:
        """Return the set whose score is wanted."""

    def after(self, below: bool) -> Self:
        """Return the next point for an answer."""


class Scores(Protocol):
    """Evaluation of masks, such as :class:`memtrain.localization.mask_scores.MaskScores`."""

    @property
    def probes(self) -> bool:
        """Whether a seed can be scored alone."""

    @property
    def room(self) -> int:
        """Number of images in one call."""

    def answer(self, mask: Mask, below: Below) -> bool | None:
        """Return the answer for a mask; None as long as it is not certain."""

    def probed(self, mask: Mask) -> bool:
        """Whether any seed of a mask has a score."""

    def missing(self, mask: Mask) -> int:
        """Return the number of seeds without a score."""

    def evaluate(self, masks: Sequence[Mask], *, probe: Sequence[Mask] = ()) -> None:
        """Score every seed of `masks`, and one seed of `probe`."""


S = TypeVar("S", bound=Search)


@dataclass
class _Rate:
    """Share of answers "below", which begins with a guess that counts as two answers."""

    answers: float
    below: float

    def add(self, answer: bool) -> None:
        self.answers, self.below = self.answers + 1, self.below + answer

    @property
    def share(self) -> float:
        return self.below / self.answers


def follow(search: S, scores: Scores, *, below: Below, expected: float, worth: float) -> S:
    """Run a search to its end.

    Args:
        search: the first point of the search.
        scores: the evaluation of masks, which keeps scores.
        below: the function from a score to the answer.
        expected: the expected share of answers "below", before any is known.
        worth: the smallest probability of being needed for which a mask is evaluated ahead; above 1 for none.
    """
    plain, probed = _Rate(2, 2 * expected), _Rate(2, 1.9)
    while not search.done:
        mask = mask_of(search.hypothesis())
        answer = scores.answer(mask, _judged(search, below))
        if answer is None:
            again = scores.probed(mask)
            masks, probe = _ahead(search, scores, below=below, plain=plain.share, probed=probed.share, worth=worth)
            scores.evaluate(masks, probe=probe)
            if again:
                probed.add(bool(scores.answer(mask, _judged(search, below))))
            continue
        plain.add(answer)
        search = search.after(answer)
    return search


def _judged(point: Search, below: Below) -> Below:
    margin = point.margin
    return below if not margin else lambda score: below(score + margin)


def _ahead(
    search: Search, scores: Scores, *, below: Below, plain: float, probed: float, worth: float
) -> tuple[list[Mask], list[Mask]]:
    """Choose the masks that are probably needed next, to score on every seed or on one seed; the next mask first."""
    whole: dict[Mask, None] = {}
    probe: dict[Mask, None] = {}
    points: list[tuple[float, int, Search]] = [(-1.0, 0, search)]
    number = images = 0
    while points:
        negative, _, point = heapq.heappop(points)
        if point.done:
            continue
        mask = mask_of(point.hypothesis())
        known = scores.answer(mask, _judged(point, below))
        answers = {True: 1.0} if known else {False: 1.0}
        if known is None:
            likely = probed if scores.probed(mask) else plain
            answers = {True: likely, False: 1 - likely}
            if mask not in whole and mask not in probe:
                alone = scores.probes and not scores.probed(mask) and -negative * likely < worth
                cost = 1 if alone else scores.missing(mask)
                if images and images + cost > scores.room:
                    break
                images += cost
                (probe if alone else whole)[mask] = None
        for answer, probability in answers.items():
            if -negative * probability >= worth:
                number += 1
                heapq.heappush(points, (negative * probability, number, point.after(answer)))
    return list(whole), list(probe)
