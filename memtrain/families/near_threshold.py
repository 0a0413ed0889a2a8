"""The agreement from which two images are one picture: a threshold at a stated rate of false merges.

A percentile over all images would fail: if six in ten files are copies of ten pictures, or all of them are, most files
that look alike *are* copies. So the threshold rests on comparisons that cannot be copies: an image against its
neighbors (of the descriptor) turned upside down. Each picture counts once, through one member of its family in a first,
rough search. Two images that look the same upside down (a disc, a striped flag) are not compared. Upright pictures are
more alike than that: one sky is above another, one face like another. The two embedded collections, in which every
picture occurs once, show how much more (:data:`REFERENCE`, :data:`SPREAD`). The data at hand give the level that one in
twenty reaches upside down. The embedded collections give what upright look-alikes reach beyond it. If fewer than
:data:`ENOUGH` pictures can be compared, the threshold rests on the embedded collections alone. The result names its
basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memtrain.engines.base import Engine
from memtrain.errors import ConfigurationError
from memtrain.families.agreement import compare
from memtrain.families.chosen_rows import Rows

ENOUGH, MOST = 100, 600
"""The number of pictures that a calibration on the data at hand needs, and the largest number that it uses."""
TURNED = 0.05
"""The share of pictures at which the level upside down is read."""
REFERENCE, REFERENCE_TURNED = 2.95, -3.2
"""Two log odds on the embedded collections: the value that one upright picture in a hundred reaches with another
picture, and the value that one in twenty reaches with a picture upside down."""
SPREAD = 2.2
"""The log odds for each factor of e between rates, on the embedded collections."""
BOUNDS = (-0.4, 6.0)
"""The bounds of the threshold's move by the data at hand: mostly up, since easy data may have look-alikes too."""
SYMMETRIC = -1.0
"""The log odds from which an image looks the same upside down."""


@dataclass(frozen=True)
class NearThreshold:
    """The agreement from which two images count as one picture.

    Attributes:
        score: the log odds, as :func:`memtrain.families.agreement.compare` gives them.
        false_merge_rate: the stated share of pictures that are joined to another one by mistake.
        pictures: the number of pictures of the data at hand in the calibration; 0 if it rests on the embedded
            collections.
    """

    score: float
    false_merge_rate: float
    pictures: int

    @property
    def similarity(self) -> float:
        """The threshold as a similarity from 0 to 1."""
        return float(self.similarity_of(np.float32(self.score)))

    @property
    def rests_on(self) -> str:
        """The basis of the threshold in words."""
        if self.pictures:
            return f"{self.pictures} pictures of these data, compared with others upside down"
        return f"memtrain's embedded pictures: these data have fewer than {ENOUGH} that can be compared"

    @staticmethod
    def similarity_of(scores: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
        """Turn log odds into a similarity from 0 to 1."""
        return np.asarray(1 / (1 + np.exp(-np.asarray(scores, dtype=np.float64) / 2)), dtype=np.float32)


def reference_threshold(false_merge_rate: float) -> float:
    """Return the threshold on the embedded collections, in log odds.

    Raises:
        ConfigurationError: if the rate is out of range.
    """
    if not 0 < false_merge_rate < 0.5:
        raise ConfigurationError(
            f"false_merge_rate is {false_merge_rate}",
            expected="a share above 0 and below 0.5",
            remedy="set it to 0.01",
        )
    return REFERENCE + SPREAD * math.log(0.01 / false_merge_rate)


def calibrate(
    thumbnails: Rows,
    candidates: NDArray[np.int64],
    rough: NDArray[np.int64],
    *,
    false_merge_rate: float,
    seed: int = 0,
    engine: Engine | None = None,
) -> NearThreshold:
    """Compute the threshold for the data at hand.

    Args:
        thumbnails: the thumbnails, `(n, 32, 32, 3)`.
        candidates: the neighbors that the descriptor proposed, `(m, 2)`.
        rough: the family of each image in a first search, `(n,)`.
        false_merge_rate: the wanted rate.
        seed: the seed of the choice of pictures.
        engine: the engine that compares pairs; by default this process.
    """
    reference = reference_threshold(false_merge_rate)
    both = np.concatenate([candidates, candidates[:, ::-1]])
    both = both[rough[both[:, 0]] != rough[both[:, 1]]]
    pictures = np.unique(rough[both[:, 0]])
    if len(pictures) < ENOUGH:
        return NearThreshold(reference, false_merge_rate, 0)
    if len(pictures) > MOST:
        pictures = np.random.default_rng(seed).choice(pictures, MOST, replace=False)
        both = both[np.isin(rough[both[:, 0]], pictures)]
    asked = _one_of_each(both, rough)
    involved = np.unique(asked)
    turned = np.ascontiguousarray(thumbnails[involved][:, ::-1])
    symmetric = np.zeros(len(thumbnails), dtype=bool)
    upside_down = np.stack([involved, np.arange(len(involved))], axis=1)
    symmetric[involved] = compare(thumbnails, turned, upside_down, engine=engine) >= SYMMETRIC
    asked = asked[~symmetric[asked].all(axis=1)]
    families = rough[asked[:, 0]]
    counted = np.unique(families)
    if len(counted) < ENOUGH:
        return NearThreshold(reference, false_merge_rate, 0)
    best = np.full(len(thumbnails), -np.inf)
    upside_down = np.stack([asked[:, 0], np.searchsorted(involved, asked[:, 1])], axis=1)
    np.maximum.at(best, families, compare(thumbnails, turned, upside_down, engine=engine))
    level = float(np.quantile(best[counted], 1 - TURNED))
    move = min(max(level - REFERENCE_TURNED, BOUNDS[0]), BOUNDS[1])
    return NearThreshold(reference + move, false_merge_rate, len(counted))


def _one_of_each(pairs: NDArray[np.int64], rough: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first pair of each pair of families, in order."""
    _, first = np.unique(rough[pairs], axis=0, return_index=True)
    return pairs[np.sort(first)]
