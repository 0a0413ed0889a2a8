"""The families of a data set, from what is kept of its images and from its captions.

Exact copies are found first; near copies are looked for among the distinct pictures that are left. Cost: that of
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
    """What was found, and how.

    Attributes:
        families: of the samples.
        threshold: similarity from which two images count as one picture.
        false_merge_rate: stated share of pictures that are joined to another one by mistake.
        calibrated_on: pictures of these data that set the threshold; 0 where it rests on the embedded ones.
        rests_on: the same in words.
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
    """Which samples are one picture, and which share a caption.

    Args:
        keys: of n samples, all different.
        captions: of the same samples.
        looks: of their images, in the same order.
        false_merge_rate: wanted share of pictures that are joined to another one by mistake.
        caption_level: Jaccard similarity of nearly equal captions; None for equal ones only.
        search: proposes pairs of descriptors; default the exact search.
        seed: of the samples that a calibration draws.
        engine: compares pictures; default in this process.

    Raises:
        DataError: if a key comes twice, or keys, captions and looks are not of one length.
    """
    lengths = [len(keys), len(captions), len(looks.hashes), len(looks.descriptors), len(looks.thumbnails)]
    if len(set(lengths)) > 1 or len(set(keys)) < len(keys):
        raise DataError(
            f"{lengths[0]} keys ({len(set(keys))} different), {lengths[1]} captions and looks of {lengths[2:]} images",
            expected="one caption and one look for each key, every key once",
            remedy="give samples names of their own, and leave out those whose image cannot be read",
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
    """Name, similarity and reason of the samples that do not stand alone, by key."""
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
