"""From which agreement on two images are one picture: a threshold at a stated rate of false merges.

A percentile over all images would not do: where six in ten files are copies of ten pictures, or all of them are, most
of what looks alike *is* alike. So the threshold rests on comparisons that cannot be copies: an image against its
neighbours (of the descriptor) turned upside down, which no copy is. Each picture counts once, by one member of what a
first, rough look takes for a family; two images that look the same upside down (a disc, a striped flag) are not
compared. Upright pictures are more alike than that: one sky is above another, one face like another. How much more was
measured on the two embedded collections, in which every picture is present once (:data:`REFERENCE`, :data:`SPREAD`):
the level that one in twenty reaches upside down is read from the data at hand, and what upright look-alikes reach
beyond it is taken from there. Where fewer than :data:`ENOUGH` pictures can be compared, the threshold rests on the
embedded collections alone; the result says which.
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
"""Pictures that a calibration on the data at hand needs, and that it uses at most."""
TURNED = 0.05
"""Share of pictures whose level upside down is read."""
REFERENCE, REFERENCE_TURNED = 2.95, -3.2
"""On the embedded collections: the log odds that one upright picture in a hundred reaches with another picture, and
those that one in twenty reaches with a picture upside down."""
SPREAD = 2.2
"""Log odds for each factor of e between rates, there."""
BOUNDS = (-0.4, 6.0)
"""Of how far the data at hand move the threshold: mostly up, since data that look easy may have look-alikes too."""
SYMMETRIC = -1.0
"""Log odds from which an image looks the same upside down."""


@dataclass(frozen=True)
class NearThreshold:
    """From where on two images count as one picture.

    Attributes:
        score: log odds, as :func:`memtrain.families.agreement.compare` gives them.
        false_merge_rate: stated share of pictures joined to another one by mistake.
        pictures: pictures of the data at hand that it was calibrated on; 0 where it rests on the embedded collections.
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
        """In words."""
        if self.pictures:
            return f"{self.pictures} pictures of these data, compared with others upside down"
        return f"memtrain's embedded pictures: these data have fewer than {ENOUGH} that can be compared"

    @staticmethod
    def similarity_of(scores: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
        """Log odds as a similarity from 0 to 1."""
        return np.asarray(1 / (1 + np.exp(-np.asarray(scores, dtype=np.float64) / 2)), dtype=np.float32)


def reference_threshold(false_merge_rate: float) -> float:
    """The threshold on the embedded collections, log odds.

    Raises:
        ConfigurationError: if the rate is none.
    """
    if not 0 < false_merge_rate < 0.5:
        raise ConfigurationError(
            f"false_merge_rate is {false_merge_rate}", expected="a share above 0 and below 0.5", remedy="use 0.01"
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
    """The threshold for the data at hand.

    Args:
        thumbnails: `(n, 32, 32, 3)`.
        candidates: `(m, 2)`, neighbours that the descriptor proposed.
        rough: `(n,)`, the family of each image by a first look.
        false_merge_rate: wanted.
        seed: of the choice of pictures.
        engine: compares the pairs; default in this process.
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
    """The first pair of each pair of families, in order."""
    _, first = np.unique(rough[pairs], axis=0, return_index=True)
    return pairs[np.sort(first)]
