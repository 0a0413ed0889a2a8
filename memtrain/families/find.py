"""The families of a data set, from the looks of its images and from its captions.

Exact copies are found first. Near copies are then searched among the remaining distinct pictures. Cost: that of
:mod:`memtrain.families.near` and :mod:`memtrain.families.captions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memtrain.engines.base import Engine
from memtrain.errors import DataError
from memtrain.families.captions import LEVEL, caption_families
from memtrain.families.chosen_rows import ChosenRows
from memtrain.families.exact import first_equal
from memtrain.families.looks import ImageLooks
from memtrain.families.near import Near, find_near
from memtrain.families.search import Search
from memtrain.families.table import EXACT, NEAR, Families


@dataclass(frozen=True)
class FoundFamilies:
    """The result of the search, and its basis.

    Attributes:
        families: the families of the samples.
        threshold: the similarity from which two images count as one picture.
        false_merge_rate: the stated share of pictures that are joined to another one by mistake.
        calibrated_on: the number of pictures of these data that set the threshold; 0 if the embedded pictures set it.
        rests_on: the basis of the threshold in words.
    """

    families: Families
    threshold: float
    false_merge_rate: float
    calibrated_on: int
    rests_on: str


def find_families(
    keys: Sequence[str],
    captions: Sequence[str],
    looks: ImageLooks,
    *,
    false_merge_rate: float = 0.01,
    caption_level: float | None = LEVEL,
    search: Search | None = None,
    seed: int = 0,
    engine: Engine | None = None,
) -> FoundFamilies:
    """Find the samples that are one picture, and the samples that share a caption.

    Args:
        keys: the keys of n samples, all different.
        captions: the captions of the same samples.
        looks: the looks of their images, in the same order.
        false_merge_rate: the wanted share of pictures that are joined to another one by mistake.
        caption_level: the Jaccard similarity of nearly equal captions; None counts only equal captions.
        search: the search that proposes pairs of descriptors; by default the exact search.
        seed: the seed of the samples that a calibration draws.
        engine: the engine that compares pictures; by default this process.

    Raises:
        DataError: if a key occurs twice, or if keys, captions and looks differ in number.
    """
    lengths = [len(keys), len(captions), len(looks.hashes), len(looks.descriptors), len(looks.thumbnails)]
    if len(set(lengths)) > 1 or len(set(keys)) < len(keys):
        raise DataError(
            f"{lengths[0]} keys ({len(set(keys))} different), {lengths[1]} captions and looks of {lengths[2:]} images",
            expected="one caption and one look for each key, and each key once",
            remedy="give samples names of their own, and leave out samples whose image cannot be read",
        )
    first = first_equal(row.tobytes() for row in looks.hashes)
    distinct = np.unique(first)
    near = find_near(
        ChosenRows(lambda: looks.descriptors, distinct),
        ChosenRows(lambda: looks.thumbnails, distinct),
        false_merge_rate=false_merge_rate,
        search=search,
        seed=seed,
        engine=engine,
    )
    pictures, similarity, reason = _pictures(keys, first, distinct, near)
    names = caption_families(captions, level=caption_level)
    shared = np.bincount(names, minlength=len(keys))[names] > 1 if len(keys) else np.zeros(0, bool)
    by_caption = {keys[at]: keys[names[at]] for at in np.flatnonzero(shared).tolist()}
    threshold = near.threshold
    return FoundFamilies(
        Families(pictures, by_caption, similarity, reason),
        threshold.similarity,
        threshold.false_merge_rate,
        threshold.pictures,
        threshold.rests_on,
    )


def _pictures(
    keys: Sequence[str], first: NDArray[np.int64], distinct: NDArray[np.int64], near: Near
) -> tuple[dict[str, str], dict[str, float], dict[str, str]]:
    """Return the name, similarity and reason of samples in larger families, by key."""
    place = np.searchsorted(distinct, first)
    names = distinct[near.names[place]]
    several = np.bincount(names, minlength=len(keys))[names] > 1 if len(keys) else np.zeros(0, bool)
    pictures, similarity, reason = {}, {}, {}
    for at in np.flatnonzero(several).tolist():
        key = keys[at]
        pictures[key] = keys[names[at]]
        if at == names[at]:
            continue
        equal = first[at] != at or first[at] == names[at]
        similarity[key] = 1.0 if equal else float(near.similarity[place[at]])
        reason[key] = EXACT if equal else NEAR
    return pictures, similarity, reason
