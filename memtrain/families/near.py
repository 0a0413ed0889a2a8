"""Near copies: files of one picture whose pixels differ, by a crop, a compression, a colour, a mirror.

What: a descriptor proposes the nearest neighbours of each image; thumbnails of the two are laid over each other and
compared (:mod:`memtrain.families.agreement`); pairs that agree from a threshold on join their images, and a family
keeps the members that agree with its representative. Representatives are then compared in the same way, until nothing
joins.
Threshold: calibrated by :mod:`memtrain.families.near_threshold` at a stated rate of false merges.
Cost: 0.2 ms for each of at most 5 neighbours of an image, on one core, and the search.
Cannot: see copies that the descriptor does not place among an image's nearest neighbours, or that the comparison cannot
register. What it misses is in `benchmarks/near_duplicates.py`, by edit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memtrain.engines.base import Engine
from memtrain.errors import DataError
from memtrain.families.agreement import compare
from memtrain.families.chosen_rows import Rows
from memtrain.families.grouping import DisjointSets, around_representatives
from memtrain.families.near_threshold import NearThreshold, calibrate, reference_threshold
from memtrain.families.search import ExactSearch, Search

SLACK = 2.0
"""By which log odds a member of a family may agree less with its representative than a pair has to."""
ROUNDS, MEMBERS = 4, 4
"""Rounds at most, and how many members of each family found in one are compared with those of others in the next."""
FEW = 200
"""Images up to which the descriptor's similarity leaves out nothing."""
BLOCK = 8192
"""Descriptors that are looked through at a time."""
PROPOSED = 0.9
"""Quantile of the similarity of two images from which a descriptor proposes a pair."""


@dataclass(frozen=True)
class Near:
    """Near copies among n images.

    Attributes:
        names: `(n,)`, the smallest index of each image's family; its own where it stands alone.
        similarity: `(n,)` fp32 from 0 to 1, to the family's representative, or of the representative to the member
            most like it; NaN for images that stand alone.
        threshold: similarity from which a pair counts, the rate it was set at, and what it rests on.
    """

    names: NDArray[np.int64]
    similarity: NDArray[np.float32]
    threshold: NearThreshold


def find_near(
    descriptors: Rows,
    thumbnails: Rows,
    *,
    false_merge_rate: float = 0.01,
    search: Search | None = None,
    seed: int = 0,
    engine: Engine | None = None,
) -> Near:
    """Families of near copies.

    Args:
        descriptors: `(n, D)` of unit length, of images whose pixels are all different.
        thumbnails: `(n, 32, 32, 3)`, of the same images.
        false_merge_rate: wanted share of images that are joined to another picture by mistake.
        search: proposes pairs; default the exact search.
        seed: of the samples that the calibration draws.
        engine: compares the pairs; default in this process.

    Raises:
        DataError: if the arrays do not belong together, or descriptors are no numbers.
    """
    count = len(thumbnails)
    fits = descriptors.ndim == 2 and len(descriptors) == count
    strange = _rows_without_numbers(descriptors) if fits else 0
    if not fits or strange:
        raise DataError(
            f"Descriptors of shape {descriptors.shape} for {count} thumbnails, {count - strange} of {count} finite",
            expected="(n, D) finite numbers, one row for each thumbnail",
            remedy="describe the images again, or use another descriptor",
        )
    search = search or ExactSearch()
    candidates = _candidates(descriptors, search, seed)
    scores = compare(thumbnails, thumbnails, candidates, engine=engine)
    rough = DisjointSets(count)
    for one, other in candidates[scores >= reference_threshold(false_merge_rate)]:
        rough.join(int(one), int(other))
    threshold = calibrate(
        thumbnails, candidates, rough.names(), false_merge_rate=false_merge_rate, seed=seed, engine=engine
    )
    return _families(
        descriptors, thumbnails, candidates, scores, search=search, threshold=threshold, seed=seed, engine=engine
    )


def _families(
    descriptors: Rows,
    thumbnails: Rows,
    candidates: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    search: Search,
    threshold: NearThreshold,
    seed: int,
    engine: Engine | None,
) -> Near:
    count = len(thumbnails)
    sets, pairs, held = DisjointSets(count), np.zeros((0, 2), np.int64), np.zeros(0, np.float32)

    def check(asked: NDArray[np.int64]) -> NDArray[np.float32]:
        return compare(thumbnails, thumbnails, asked, engine=engine)

    heads, names = np.arange(count), np.arange(count)
    for _ in range(ROUNDS):
        agreeing = scores >= threshold.score
        if not agreeing.any():
            break
        before = len(np.unique(heads))
        pairs, held = np.concatenate([pairs, candidates[agreeing]]), np.concatenate([held, scores[agreeing]])
        sets = DisjointSets(count)
        for one, other in pairs:
            sets.join(int(one), int(other))
        heads, names = around_representatives(
            sets.names(),
            pairs,
            held - threshold.score + 1,
            compare=lambda a: check(a) - threshold.score + 1,
            least=1 - SLACK,
        )
        if len(np.unique(heads)) == before:
            break
        left = _some_of_each(heads)
        again = left[_candidates(descriptors[left], search, seed)]
        again = again[heads[again[:, 0]] != heads[again[:, 1]]]
        # What was compared before has been decided.
        again = _without(np.sort(again, axis=1), candidates)
        candidates, scores = again, check(again)
    return Near(names, _similarity(heads, check, threshold), threshold)


def _some_of_each(heads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each family the representative and some more members, in order."""
    order = np.lexsort((np.arange(len(heads)) != heads, heads))
    starts = np.flatnonzero(np.diff(heads[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[rank < MEMBERS])


def _similarity(
    heads: NDArray[np.int64], check: Callable[[NDArray[np.int64]], NDArray[np.float32]], threshold: NearThreshold
) -> NDArray[np.float32]:
    """Of each image to its representative, and of that to the most similar member."""
    found = np.full(len(heads), np.nan, dtype=np.float32)
    members = np.flatnonzero(heads != np.arange(len(heads)))
    if len(members):
        asked = np.stack([heads[members], members], axis=1)
        found[members] = NearThreshold.similarity_of(check(np.sort(asked, axis=1)))
        np.fmax.at(found, heads[members], found[members])
    return found


def _rows_without_numbers(descriptors: Rows) -> int:
    """Rows that hold anything but finite numbers."""
    blocks = (descriptors[start : start + BLOCK] for start in range(0, len(descriptors), BLOCK))
    return sum(int((~np.isfinite(block)).any(axis=1).sum()) for block in blocks)


def _candidates(descriptors: Rows, search: Search, seed: int) -> NDArray[np.int64]:
    """Pairs that are worth comparing, `(m, 2)`."""
    least = -1.0
    if len(descriptors) > FEW:
        some = np.random.default_rng(seed).choice(len(descriptors), FEW, replace=False)
        least = float(np.quantile(descriptors[some] @ descriptors[some[: FEW // 2]].T, PROPOSED))
    return search(descriptors, least)[0]


def _without(pairs: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs that are not among those known."""
    if not len(pairs) or not len(known):
        return pairs
    width = int(max(pairs.max(), known.max())) + 1
    return pairs[~np.isin(pairs[:, 0] * width + pairs[:, 1], known[:, 0] * width + known[:, 1])]
