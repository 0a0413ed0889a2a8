"""Running means and variances.

- :class:`Moments`: moments of a fixed set, in parts that merge exactly.
- :class:`DriftingMoments`: moments of a process that changes over time, one observation after the other.

Two skipping rules have their own moments, which decay: the means of `LossSkipping` begin at 0, as published, and
`EntropySkipping` adds a batch at once. The same sums in another order would change their results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and variance of several quantities over a set of observations; moments of two sets merge.

    Attributes:
        count: number of observations.
        mean: `(C,)` fp64.
        square: `(C,)` fp64, sum of squared distances from the mean.
    """

    count: float
    mean: Tensor
    square: Tensor

    @staticmethod
    def of(observations: Tensor) -> Moments:
        """Return the moments of observations `(N, C)`; N may be 0."""
        values = observations.double()
        mean = values.sum(dim=0) / max(len(values), 1)
        return Moments(float(len(values)), mean, (values - mean).square().sum(dim=0))

    def merge(self, other: Moments) -> Moments:
        """Join both sets (Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983)."""
        count = self.count + other.count
        if not count:
            return self
        share, difference = other.count / count, other.mean - self.mean
        square = self.square + other.square + difference.square() * self.count * share
        return Moments(count, self.mean + difference * share, square)

    def limited(self, count: float) -> Moments:
        """Return the same mean and variance, with the weight of at most `count` observations in later merges."""
        share = min(1.0, count / max(self.count, 1.0))
        return Moments(self.count * share, self.mean, self.square * share)

    @property
    def std(self) -> Tensor:
        """Unbiased standard deviation, `(C,)`; 0 below two observations."""
        return (self.square / (self.count - 1)).sqrt() if self.count > 1 else torch.zeros_like(self.square)


class DriftingMoments:
    """Mean and variance of the last observations of several quantities, in groups.

    The first `window` observations of a group are averaged with equal weights. Later ones have weight 1 / window, so
    that the moments follow a model that changes during training.

    Args:
        groups: number of groups (timestep buckets).
        columns: number of quantities observed together.
        window: number of observations that count.
        minimum: number of observations before moments are used; a deviation of few observations is inaccurate.
        resolution: `(columns,)` lower limit of the standard deviation.
    """

    def __init__(
        self, groups: int, columns: int, *, window: int, minimum: int = 2, resolution: Tensor | None = None
    ) -> None:
        self.window, self.minimum = window, minimum
        self.resolution = torch.full((columns,), 1e-12) if resolution is None else resolution
        self.count = torch.zeros(groups, columns, dtype=torch.float64)
        self.mean = torch.zeros(groups, columns, dtype=torch.float64)
        self.square = torch.zeros(groups, columns, dtype=torch.float64)

    def update(self, group: int | Tensor, values: Tensor) -> None:
        """Add one observation of a group, or one of each of several.

        Args:
            group: one group, or `(B,)` different ones.
            values: `(columns,)`, or `(B, columns)`; NaN or infinite where a quantity was not observed.
        """
        seen = values.isfinite()
        self.count[group] += seen
        rate = 1 / self.count[group].clamp(1, self.window)
        difference = torch.where(seen, values.double() - self.mean[group], 0.0)
        self.mean[group] += rate * difference
        updated = (1 - rate) * (self.square[group] + rate * difference.square())
        self.square[group] = torch.where(seen, updated, self.square[group])

    def follow(self, groups: Sequence[int], values: Tensor) -> Tensor:
        """Standardise observations `(B, columns)` one after the other, each before it is added, `(B, columns)`.

        Args:
            groups: B groups.
            values: `(B, columns)`, NaN or infinite where a quantity was not observed.
        """
        if not groups:
            return values.double()
        # Groups are independent: the first observations of all groups are added at once, then the second ones.
        turns = _turns(groups)
        order = torch.tensor([index for turn in turns for index in turn], dtype=torch.long)
        sizes = [len(turn) for turn in turns]
        group, parts = torch.tensor(groups, dtype=torch.long)[order].split(sizes), []
        for one, value in zip(group, values.double()[order].split(sizes), strict=True):
            parts.append(self.standardise(one, value))
            self.update(one, value)
        found = torch.empty(values.shape, dtype=torch.float64)
        found[order] = torch.cat(parts)
        return found

    def standardise(self, group: int | Tensor, values: Tensor) -> Tensor:
        """Return `(values − mean) / standard deviation` of `group`; NaN before `minimum` observations.

        Args:
            group: one group, or `(B,)` groups.
            values: `(columns,)`, or `(B, columns)`.
        """
        return (values.double() - self.mean[group]) / self.deviation(group)

    def deviation(self, group: int | Tensor | slice = slice(None)) -> Tensor:
        """Return the standard deviations of one group `(columns,)` or of several; NaN before `minimum` observations."""
        count = self.count[group].clamp(max=self.window)
        deviation = (self.square[group] * count / (count - 1)).sqrt().maximum(self.resolution)
        return torch.where(count < self.minimum, torch.nan, deviation)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the moments."""
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]


def _turns(groups: Sequence[int]) -> list[list[int]]:
    """Return the indices of observations that are added at once: at most one per group, in the order of the group."""
    turns: list[list[int]] = []
    taken: dict[int, int] = {}
    for index, group in enumerate(groups):
        turn = taken[group] = taken.get(group, -1) + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(index)
    return turns
