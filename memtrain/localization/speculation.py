"""Follow a search whose next question depends on the last answer, asking several questions at once.

The next questions are known for either answer, so those that are most likely to be needed are evaluated in the same
batch; the path that is taken is the one that a question at a time would take. How likely an answer is, is estimated
from those so far. What was evaluated in vain costs time only, and is remembered in case the set comes up again.

A mask is above the threshold as soon as one seed is. Where a seed can be scored alone, masks that are less likely to be
needed, or to be below, are scored on one seed first, the one that was worst last.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from memtrain.localization.selection import Lists, Mask, mask_of

Below = Callable[[float], bool]
"""The answer that a score means: true up to some score and false beyond."""


class Search(Protocol):
    """A point in a search: a selection or a refinement (:mod:`memtrain.localization.selection`, `refinement`)."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""

    @property
    def margin(self) -> float:
        """What is added to the score of that set before it is judged."""

    def hypothesis(self) -> Lists:
        """The set whose score is wanted."""

    def after(self, below: bool) -> Self:
        """The point that follows from an answer."""


class Scores(Protocol):
    """What evaluates masks: :class:`memtrain.localization.mask_scores.MaskScores`."""

    @property
    def probes(self) -> bool:
        """Whether a seed can be scored alone."""

    @property
    def room(self) -> int:
        """Images in one call."""

    def answer(self, mask: Mask, below: Below) -> bool | None:
        """The answer for a mask; None as long as it is not certain."""

    def probed(self, mask: Mask) -> bool:
        """Whether any seed is scored."""

    def missing(self, mask: Mask) -> int:
        """Seeds that are not scored."""

    def evaluate(self, masks: Sequence[Mask], *, probe: Sequence[Mask] = ()) -> None:
        """Score every seed of some masks, and one seed of others."""


S = TypeVar("S", bound=Search)


@dataclass
class _Rate:
    """Share of answers that are "below", beginning with a guess that counts as two."""

    answers: float
    below: float

    def add(self, answer: bool) -> None:
        self.answers, self.below = self.answers + 1, self.below + answer

    @property
    def share(self) -> float:
        return self.below / self.answers


def follow(search: S, scores: Scores, *, below: Below, expected: float, worth: float) -> S:
    """Take a search to its end.

    Args:
        search: where it begins.
        scores: evaluates masks, and remembers.
        below: the answer that a score means.
        expected: share of answers that are expected to be "below" before any is known.
        worth: probability of being needed from which a mask is evaluated ahead; above 1 for none.
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
    """The masks most likely to be needed next, to be scored on every seed or on one; first the one that is needed."""
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
