"""From pairs to families: disjoint sets, and families in which every member is like one representative."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TRIED, SAMPLED = 8, 24
"""The number of members that may represent a set, and the number of members that they are compared with."""


class DisjointSets:
    """Sets of the numbers from 0 to n − 1, each named by its smallest member.

    Args:
        count: the number n; each number is a set of its own at first.
    """

    def __init__(self, count: int) -> None:
        self._above = np.arange(count)

    def find(self, member: int) -> int:
        """Return the name of a member's set."""
        above = self._above
        root = member
        while above[root] != root:
            root = int(above[root])
        while above[member] != root:
            above[member], member = root, int(above[member])
        return root

    def join(self, one: int, other: int) -> None:
        """Join the sets of two members."""
        one, other = sorted((self.find(one), self.find(other)))
        self._above[other] = one

    def names(self) -> NDArray[np.int64]:
        """Return the name of each number's set, `(n,)`."""
        return np.array([self.find(member) for member in range(len(self._above))], dtype=np.int64)


def around_representatives(
    names: NDArray[np.int64],
    pairs: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    compare: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    least: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut sets so that every member is like its representative. A chain of similar members does not make a family.

    The representative comes from the members with the most and surest pairs. It is the one that is like most of the
    others. Members that are not like it form sets of their own, in the same way.

    Args:
        names: the set of each sample, `(n,)`, from :class:`DisjointSets`.
        pairs: the pairs that made the sets, `(m, 2)`.
        scores: the scores of the pairs, `(m,)`, positive.
        compare: the function that scores other pairs.
        least: the score from which a member is like its representative. The member is already like another member, so
            this score may be lower than that of a pair.

    Returns:
        The representative of each sample, `(n,)`, and the smallest member of its set, `(n,)`.
    """
    strength = np.bincount(pairs.ravel(), np.repeat(scores, 2), minlength=len(names)).astype(np.float64)
    known = {(int(a), int(b)): float(score) for (a, b), score in zip(pairs, scores, strict=True)}

    def like(asked: NDArray[np.int64]) -> NDArray[np.bool_]:
        asked = np.sort(asked, axis=1)
        found = np.array([known.get((int(a), int(b)), np.nan) for a, b in asked], dtype=np.float32)
        new = np.isnan(found)
        found[new] = compare(asked[new])
        return found >= least

    representatives, named = np.arange(len(names)), np.arange(len(names))
    waiting = _several(names)
    while waiting:
        # All sets at once, because comparisons of few pairs at a time cost much more for each pair.
        heads = _central(waiting, strength, like)
        others = [members[members != head] for members, head in zip(waiting, heads, strict=True)]
        asked = np.stack([np.concatenate(others), np.repeat(heads, [len(some) for some in others])], axis=1)
        alike = np.split(like(asked), np.cumsum([len(some) for some in others])[:-1])
        left = np.full(len(names), -1)
        for head, some, same in zip(heads.tolist(), others, alike, strict=True):
            inside = np.append(some[same], head)
            representatives[inside], named[inside] = head, inside.min()
            left[some[~same]] = head
        # The rest of a set is connected only through pairs of its own.
        kept = (left[pairs[:, 0]] == left[pairs[:, 1]]) & (left[pairs[:, 0]] >= 0)
        sets = DisjointSets(len(names))
        for one, other in pairs[kept]:
            sets.join(int(one), int(other))
        waiting = _several(sets.names())
    return representatives, named


def _several(names: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the sets of two members or more."""
    order = np.argsort(names, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(names[order])) + 1) if len(names) else []
    return [members for members in sets if len(members) > 1]


def _central(
    sets: list[NDArray[np.int64]],
    strength: NDArray[np.float64],
    like: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
) -> NDArray[np.int64]:
    """Return the representative of each set: of a few well-connected members, the one like most of a sample."""
    held = [members[np.argsort(-strength[members], kind="stable")] for members in sets]
    heads = np.array([members[0] for members in held], dtype=np.int64)
    asked, shapes = [], []
    large = [at for at, members in enumerate(sets) if len(members) > TRIED]
    for at in large:
        tried = held[at][:: max(1, len(held[at]) // (2 * TRIED))][:TRIED]
        sample = sets[at][:: -(-len(sets[at]) // SAMPLED)]
        asked.append(np.stack([np.repeat(tried, len(sample)), np.tile(sample, len(tried))], axis=1))
        shapes.append((tried, len(sample)))
    if not large:
        return heads
    pairs = np.concatenate(asked)
    alike = pairs[:, 0] == pairs[:, 1]
    alike[~alike] = like(pairs[~alike])
    ends = np.cumsum([len(tried) * count for tried, count in shapes])[:-1]
    for at, (tried, count), found in zip(large, shapes, np.split(alike, ends), strict=True):
        heads[at] = tried[np.argmax(found.reshape(len(tried), count).sum(axis=1))]
    return heads
