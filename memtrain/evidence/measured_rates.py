"""How many ordinary samples were flagged in simulations, for each asked rate and number of held-out samples.

Figures of `benchmarks/rates.json`, which `python benchmarks/rates.py` makes: of each number of held-out samples and
asked rate, the kind of data in which most ordinary samples were flagged. A test holds this table to that file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """The worst of several kinds of data.

    Attributes:
        heldout: held-out samples of the simulation; 0 where the bulk calibrated.
        mean: share of ordinary samples flagged at some time, mean over runs.
        worst: the same in the worst run.
        scenario: the kind of data.
        scenarios: number of kinds.
    """

    heldout: int
    mean: float
    worst: float
    scenario: str
    scenarios: int


TABLE: dict[tuple[int, float], tuple[float, float, str]] = {}
"""By held-out samples (0: the bulk) and asked rate: mean over runs, worst run, kind of data."""
KINDS: dict[bool, int] = {True: 0, False: 0}
"""Kinds of data with held-out samples, and without."""


def measured(heldout: int | None, false_positive_rate: float) -> Measured | None:
    """Of the simulation with the most similar number, at the lowest simulated rate that is not below what is asked.

    Args:
        heldout: held-out samples; None where the bulk calibrates.
        false_positive_rate: asked.

    Returns:
        None where no simulated rate is as high.
    """
    counts = {count for count, _ in TABLE if (count == 0) == (heldout is None)}
    rates = {rate for _, rate in TABLE if rate >= false_positive_rate - 1e-12}
    if not counts or not rates:
        return None
    count = min(counts, key=lambda one: abs(math.log((one + 1) / ((heldout or 0) + 1))))
    mean, worst, scenario = TABLE[count, min(rates)]
    return Measured(count, mean, worst, scenario, KINDS[count > 0])
