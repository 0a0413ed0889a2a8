"""Follow a search whose next question depends on the last answer, asking several questions at once.

The next questions are known for either answer, so those that are most likely to be needed are evaluated in the same
batch; the path that is taken is the one that a question at a time would take. How likely an answer is, is estimated
from those so far. What was evaluated in vain costs time only, and is remembered in case the set comes up again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

from memtrain.localization.selection import Lists, Mask, mask_of


class Search(Protocol):
    """A point in a search: :class:`Selection` and :class:`Refinement`."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""

    def hypothesis(self) -> Lists:
        """The set whose score is wanted."""

    def after(self, below: bool) -> Self:
        """The point that follows from an answer."""


S = TypeVar("S", bound=Search)
Evaluate = Callable[[Sequence[Mask]], None]


def follow(
    search: S,
    scores: dict[Mask, float],
    *,
    evaluate: Evaluate,
    below: Callable[[float], bool],
    expected: float,
    most: int,
    worth: float,
) -> S:
    """Take a search to its end.

    Args:
        search: where it begins.
        scores: of the masks that are known; what is evaluated is added.
        evaluate: puts the scores of several masks into `scores`.
        below: the answer that a score means.
        expected: share of answers that are expected to be "below" before any is known.
        most: masks evaluated at once.
        worth: probability of being needed from which a mask is evaluated ahead; above 1 for none.
    """
    answers, belows = 2.0, 2.0 * expected
    while not search.done:
        mask = mask_of(search.hypothesis())
        if mask not in scores:
            evaluate(_ahead(search, scores, below=below, likely=belows / answers, most=most, worth=worth))
        answer = below(scores[mask])
        answers, belows = answers + 1, belows + answer
        search = search.after(answer)
    return search


def _ahead(
    search: Search,
    scores: dict[Mask, float],
    *,
    below: Callable[[float], bool],
    likely: float,
    most: int,
    worth: float,
) -> list[Mask]:
    """The masks most likely to be needed next, the one that is needed first."""
    chosen: dict[Mask, None] = {}
    points: list[tuple[float, int, Search]] = [(-1.0, 0, search)]
    number = 0
    while points and len(chosen) < most:
        negative, _, point = heapq.heappop(points)
        if chosen and -negative < worth:
            break
        if point.done:
            continue
        mask = mask_of(point.hypothesis())
        answers = {True: likely, False: 1 - likely}
        if mask in scores:
            answers = {below(scores[mask]): 1.0}
        else:
            chosen[mask] = None
        for answer, probability in answers.items():
            if chosen and -negative * probability < worth:
                continue
            number += 1
            heapq.heappush(points, (negative * probability, number, point.after(answer)))
    return list(chosen)
