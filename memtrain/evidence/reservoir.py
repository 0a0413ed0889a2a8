"""A uniform sample of the samples with enough visits, which represents the bulk of a million samples.

The sample holds the rows with the smallest hashes of their names, among all samples with enough counted visits
(bottom-k; Cohen and Kaplan, "Summarizing Data Using Bottom-k Sketches", PODC 2007). It depends on names only, and not
on the order of visits, the process or the machine. The samples of two sets merge into the sample of both.

Up to :data:`MOST` samples all of them are taken, so nothing is estimated. Cost: a hash of each new name, and a
comparison of it when a sample has enough visits. Error: a quantile at p, estimated from k scores, has the standard
error √(p (1 − p) / k) / density. At a rate of 1 % of normal scores, the threshold of the bulk has an error of 3.9 / √k
standard deviations of the scores, which is 0.043 with 8,192 (:func:`threshold_error`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memtrain.functional.keyed_draws import seed_of_text
from memtrain.functional.statistics import student_quantile

MOST = 8192
"""Largest number of samples in it."""
_ALL = 2**62


def place(name: str) -> int:
    """Return the place of a name in a random order of names."""
    return seed_of_text(f"reservoir\0{name}")


class Reservoir:
    """The rows with the smallest places among all rows with enough visits.

    Args:
        visits: number of counted visits that is enough.

    Attributes:
        rows: the rows `(k,)`, ascending.
    """

    def __init__(self, visits: int) -> None:
        self.visits = visits
        self.rows = torch.zeros(0, dtype=torch.long)
        self._places = self.rows
        # The lowest place that was ever refused. Beyond it the sample would not be uniform.
        self._limit = _ALL

    def offer(self, rows: Tensor, places: Tensor) -> None:
        """Offer rows with enough visits, `(B,)`, and the places of their names."""
        fitting = places < self._limit
        if not bool(fitting.any()):
            return
        rows, places = torch.cat([self.rows, rows[fitting]]), torch.cat([self._places, places[fitting]])
        if len(rows) > MOST:
            lowest = places.sort().values[MOST]
            self._limit = int(lowest)
            kept = places < lowest
            rows, places = rows[kept], places[kept]
        order = rows.argsort()
        self.rows, self._places = rows[order], places[order]

    def remove(self, row: int, *, last: int) -> None:
        """Remove a row; the last row takes its place."""
        kept = self.rows != row
        rows, self._places = self.rows[kept], self._places[kept]
        rows = torch.where(rows == last, row, rows)
        order = rows.argsort()
        self.rows, self._places = rows[order], self._places[order]


def threshold_error(false_positive_rate: float, count: int, *, freedom: float = math.inf) -> float:
    """Return the standard error of :func:`~memtrain.functional.statistics.robust_threshold` from `count` scores.

    The unit is the standard deviation of normal scores, with the spread of the upper half. The threshold is (1 − c) ·
    median + c · upper quartile, where c is the quantile at the rate divided by the quantile at a quarter. Quantiles of
    a sample are normal around the quantiles of all, with the covariance p (1 − q) / (density at p · density at q ·
    count).
    """
    share = student_quantile(false_positive_rate, freedom) / student_quantile(0.25, freedom)
    middle, upper = 1 / math.sqrt(2 * math.pi), math.exp(-(student_quantile(0.25, math.inf) ** 2) / 2)
    upper *= middle
    variance = (1 - share) ** 2 * 0.25 / middle**2 + share**2 * 0.1875 / upper**2
    variance += 2 * (1 - share) * share * 0.125 / (middle * upper)
    return math.sqrt(variance / count)
