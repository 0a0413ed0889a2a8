"""Near copies: files of one picture with different pixels, after a crop, a compression, a recoloring, a mirroring.

A descriptor proposes the nearest neighbors of each image. The thumbnails of each pair are laid over each other
and compared (:mod:`memtrain.families.agreement`). Pairs with an agreement above a threshold join their images. A family
keeps the members that agree with its representative. Representatives are then compared in the same way, until nothing
joins. Threshold: calibrated by :mod:`memtrain.families.near_threshold` at a stated rate of false merges.
Cost: 0.2 ms for each of at most 5 neighbors of an image, on one core, and the search.
Cannot: see copies that the descriptor does not place among an image's nearest neighbors, or that the comparison cannot
register. `benchmarks/near_duplicates.py` lists the missed copies by edit.
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
"""The log odds by which a member may agree less with its representative than a pair must agree."""
ROUNDS, MEMBERS = 4, 4
"""The largest number of rounds, and the members of each family that are compared with others in the next round."""
FEW = 200
"""The number of images up to which all pairs are compared."""
BLOCK = 8192
"""The number of descriptors that are checked at a time."""
PROPOSED = 0.9
"""The quantile of the similarity of two images from which a descriptor proposes a pair."""


@dataclass(frozen=True)
class Near:
    """Near copies among n images.

    Attributes:
        names: the smallest index of each image's family, `(n,)`; an image alone has its own index.
        similarity: the similarity from 0 to 1 of an image to its family's representative, `(n,)` fp32. The value of the
            representative is its similarity to the most similar member. It is NaN for images that stand alone.
        threshold: the similarity from which a pair counts, the rate at which it was set, and its basis.
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
    """Find families of near copies.

    Args:
        descriptors: the descriptors of unit length, `(n, D)`, of images whose pixels all differ.
        thumbnails: the thumbnails of the same images, `(n, 32, 32, 3)`.
        false_merge_rate: the wanted share of images that are joined to another picture by mistake.
        search: the search that proposes pairs; by default the exact search.
        seed: the seed of the samples that the calibration draws.
        engine: the engine that compares pairs; by default this process.

    Raises:
        DataError: if the arrays do not belong together, or if descriptors are not finite numbers.
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
        # Pairs that were compared before are decided.
        again = _without(np.sort(again, axis=1), candidates)
        candidates, scores = again, check(again)
    return Near(names, _similarity(heads, check, threshold), threshold)


def _some_of_each(heads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the representative and some more members of each family, in order."""
    order = np.lexsort((np.arange(len(heads)) != heads, heads))
    starts = np.flatnonzero(np.diff(heads[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[rank < MEMBERS])


def _similarity(
    heads: NDArray[np.int64], check: Callable[[NDArray[np.int64]], NDArray[np.float32]], threshold: NearThreshold
) -> NDArray[np.float32]:
    """Return the similarity of each image to its representative, and of the latter to its most similar member."""
    found = np.full(len(heads), np.nan, dtype=np.float32)
    members = np.flatnonzero(heads != np.arange(len(heads)))
    if len(members):
        asked = np.stack([heads[members], members], axis=1)
        found[members] = NearThreshold.similarity_of(check(np.sort(asked, axis=1)))
        np.fmax.at(found, heads[members], found[members])
    return found


def _rows_without_numbers(descriptors: Rows) -> int:
    """Count the rows that hold other values than finite numbers."""
    blocks = (descriptors[start : start + BLOCK] for start in range(0, len(descriptors), BLOCK))
    return sum(int((~np.isfinite(block)).any(axis=1).sum()) for block in blocks)


def _candidates(descriptors: Rows, search: Search, seed: int) -> NDArray[np.int64]:
    """Return the pairs that are worth comparing, `(m, 2)`."""
    least = -1.0
    if len(descriptors) > FEW:
        some = np.random.default_rng(seed).choice(len(descriptors), FEW, replace=False)
        least = float(np.quantile(descriptors[some] @ descriptors[some[: FEW // 2]].T, PROPOSED))
    return search(descriptors, least)[0]


def _without(pairs: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs that are not in `known`."""
    if not len(pairs) or not len(known):
        return pairs
    width = int(max(pairs.max(), known.max())) + 1
    return pairs[~np.isin(pairs[:, 0] * width + pairs[:, 1], known[:, 0] * width + known[:, 1])]
