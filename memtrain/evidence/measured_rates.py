"""Shares of ordinary samples flagged in simulations, for each requested rate and number of held-out samples.

The figures are from `benchmarks/rates.json`, which `python benchmarks/rates.py` makes. For each number of held-out
samples and requested rate, the table has the kind of data with the most flagged ordinary samples. A test compares this
table with that file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """The worst of several kinds of data.

    Attributes:
        heldout: number of held-out samples in the simulation; 0 if the bulk calibrated.
        mean: share of ordinary samples flagged at any time, mean over runs.
        worst: the same share in the worst run.
        scenario: the kind of data.
        scenarios: number of kinds of data.
    """

    heldout: int
    mean: float
    worst: float
    scenario: str
    scenarios: int


TABLE: dict[tuple[int, float], tuple[float, float, str]] = {
    (0, 0.001): (0.0, 0.0, "seven unsigned columns"),
    (0, 0.01): (0.0156, 0.02, "heavy tails (t, 3 degrees)"),
    (0, 0.05): (0.0844, 0.1133, "heavy tails (t, 3 degrees)"),
    (8, 0.001): (0.0006, 0.0133, "heavy tails (t, 3 degrees)"),
    (8, 0.01): (0.0075, 0.04, "seven unsigned columns"),
    (8, 0.05): (0.0456, 0.14, "seven unsigned columns"),
    (30, 0.001): (0.0003, 0.0067, "heavy tails (t, 3 degrees)"),
    (30, 0.01): (0.0057, 0.02, "seven unsigned columns"),
    (30, 0.05): (0.0377, 0.12, "seven unsigned columns"),
    (120, 0.001): (0.0011, 0.0067, "heavy tails (t, 3 degrees)"),
    (120, 0.01): (0.0094, 0.0267, "heavy tails (t, 3 degrees)"),
    (120, 0.05): (0.0294, 0.08, "seven unsigned columns"),
    (1000, 0.001): (0.0033, 0.0067, "correlated in pairs"),
    (1000, 0.01): (0.0067, 0.0133, "independent, normal"),
    (1000, 0.05): (0.0133, 0.0133, "correlated in pairs"),
}
"""Mean over runs, worst run and kind of data, by number of held-out samples (0 for the bulk) and requested rate."""
KINDS: dict[bool, int] = {True: 6, False: 4}
"""Numbers of kinds of data with held-out samples and without."""


def measured(heldout: int | None, false_positive_rate: float) -> Measured | None:
    """Return the figures for the most similar number, at the lowest simulated rate from the requested rate on.

    Args:
        heldout: number of held-out samples; None if the bulk calibrates.
        false_positive_rate: the requested rate.

    Returns:
        The figures; None if no simulated rate is as high.
    """
    counts = {count for count, _ in TABLE if (count == 0) == (heldout is None)}
    rates = {rate for _, rate in TABLE if rate >= false_positive_rate - 1e-12}
    if not counts or not rates:
        return None
    count = min(counts, key=lambda one: abs(math.log((one + 1) / ((heldout or 0) + 1))))
    mean, worst, scenario = TABLE[count, min(rates)]
    return Measured(count, mean, worst, scenario, KINDS[count > 0])
