"""From pairs to families: disjoint sets, and families of which every member is like one and the same member."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TRIED, SAMPLED = 8, 24
"""Members that may represent a set, and members that they are compared with."""


class DisjointSets:
    """Sets of the numbers from 0 to n − 1, each named by its smallest member.

    Args:
        count: n; each number is a set of its own at first.
    """

    def __init__(self, count: int) -> None:
        self._above = np.arange(count)

    def find(self, member: int) -> int:
        """The name of a member's set."""
        above = self._above
        root = member
        while above[root] != root:
            root = int(above[root])
        while above[member] != root:
            above[member], member = root, int(above[member])
        return root

    def join(self, one: int, other: int) -> None:
        """Make one set of two members' sets."""
        one, other = sorted((self.find(one), self.find(other)))
        self._above[other] = one

    def names(self) -> NDArray[np.int64]:
        """The name of each number's set, `(n,)`."""
        return np.array([self.find(member) for member in range(len(self._above))], dtype=np.int64)


def around_representatives(
    names: NDArray[np.int64],
    pairs: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    compare: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    least: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sets cut so that every member is like its representative: a chain of likes does not make a family.

    The representative is that of the members with the most and surest pairs which is like most of the others. Members
    that are not like it form sets of their own, in the same way.

    Args:
        names: `(n,)`, the set of each sample, from :class:`DisjointSets`.
        pairs: `(m, 2)`, the pairs that made the sets.
        scores: `(m,)` of the pairs, positive.
        compare: scores of other pairs.
        least: score from which a member is like its representative; it has been like another member already, so this
            may be lower than what makes a pair.

    Returns:
        The representative of each sample, `(n,)`, and the smallest member of its set, `(n,)`.
    """
    count = len(names)
    strength = np.bincount(pairs.ravel(), np.repeat(scores, 2), minlength=count).astype(np.float64)
    known = {(int(a), int(b)): float(score) for (a, b), score in zip(pairs, scores, strict=True)}
    representatives, named = np.arange(count), np.arange(count)
    order = np.argsort(names, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(names[order])) + 1) if count else []
    waiting = [members for members in sets if len(members) > 1]
    while waiting:
        members = waiting.pop()
        head = _central(members, strength, compare, least)
        others = members[members != head]
        asked = np.stack([np.minimum(others, head), np.maximum(others, head)], axis=1)
        found = np.array([known.get((int(a), int(b)), np.nan) for a, b in asked], dtype=np.float32)
        found[np.isnan(found)] = compare(asked[np.isnan(found)])
        inside = np.append(others[found >= least], head)
        representatives[inside], named[inside] = head, inside.min()
        left = others[found < least]
        # What is left hangs together only through pairs of its own.
        if len(left) > 1:
            waiting.extend(_connected(left, pairs))
    return representatives, named


def _central(
    members: NDArray[np.int64],
    strength: NDArray[np.float64],
    compare: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    least: float,
) -> int:
    """The representative: of a few members that hold most, the one that is like most of a sample of all."""
    held = members[np.argsort(-strength[members], kind="stable")]
    if len(members) <= TRIED:
        return int(held[0])
    tried = held[:: max(1, len(held) // (2 * TRIED))][:TRIED]
    sample = members[:: -(-len(members) // SAMPLED)]
    asked = np.stack([np.repeat(tried, len(sample)), np.tile(sample, len(tried))], axis=1)
    alike = (asked[:, 0] == asked[:, 1]) | (compare(np.sort(asked, axis=1)) >= least)
    return int(tried[np.argmax(alike.reshape(len(tried), -1).sum(axis=1))])


def _connected(members: NDArray[np.int64], pairs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The parts of `members` that pairs among them hold together, of two or more."""
    members = np.sort(members)
    inside = pairs[np.isin(pairs, members).all(axis=1)]
    sets = DisjointSets(len(members))
    for one, other in np.searchsorted(members, inside):
        sets.join(int(one), int(other))
    names = sets.names()
    return [members[names == name] for name in np.unique(names) if (names == name).sum() > 1]
