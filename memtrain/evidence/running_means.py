"""Evidence per sample over visits: running means of z-scores, on one scale for samples with few and with many visits.

Samples differ for good, not only from visit to visit. The share of variance between samples is estimated from samples
that are not memorized, and the evidence is scaled by its standard deviation under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Sign = Literal["low", "high", "unknown"]
"""Where a memorized sample's values lie; `unknown` for columns that differ in sign."""


def signed_score(evidence: Tensor, memorized_when: Sign) -> Tensor:
    """Evidence `(n, columns)` of one signal to a score `(n,)`, high when memorized."""
    if memorized_when == "unknown":
        return evidence.square().mean(dim=1).sqrt()
    return evidence.mean(dim=1) * (1 if memorized_when == "high" else -1)


def _empty() -> Tensor:
    return torch.zeros(0, 0, dtype=torch.float64)


@dataclass
class Evidence:
    """Accumulated evidence of a set of samples; grows as new keys appear.

    Attributes:
        columns: number of values per visit.
        window: visits that the running mean remembers.
        row: key to row.
        visits: `(n, columns)` visits counted, by value: not every visit has every value.
        mean: `(n, columns)` running mean of z.
        dilution: `(n, columns)` sum of squared weights in that mean: 1 / visits at first, then 1 / (2 window − 1).
        total: `(n, columns)` sum of the compared values, not standardised, over the counted visits.
    """

    columns: int
    window: int = 12
    row: dict[str, int] = field(default_factory=dict)
    visits: Tensor = field(default_factory=_empty)
    mean: Tensor = field(default_factory=_empty)
    dilution: Tensor = field(default_factory=_empty)
    total: Tensor = field(default_factory=_empty)

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Rows of `keys`; unknown keys get new ones."""
        new = [key for key in dict.fromkeys(keys) if key not in self.row]
        if new:
            for key in new:
                self.row[key] = len(self.row)
            zeros = torch.zeros(len(new), self.columns, dtype=torch.float64)
            for name, fresh in (("visits", zeros), ("mean", zeros), ("dilution", zeros + 1), ("total", zeros)):
                setattr(self, name, torch.cat([getattr(self, name).view(-1, self.columns), fresh]))
        return [self.row[key] for key in keys]

    def add(self, rows: Sequence[int], values: Tensor, z: Tensor) -> None:
        """Take in visits, in order.

        Args:
            rows: B rows of their samples; a sample may occur several times.
            values: `(B, columns)` compared values, NaN where there is none.
            z: the same as z-scores.
        """
        left = list(range(len(rows)))
        while left:
            # A sample's visits have to be taken one after the other, those of different samples need not.
            turn = list({rows[index]: index for index in reversed(left)}.values())
            self._add(torch.tensor([rows[index] for index in turn]), values[turn], z[turn])
            taken = set(turn)
            left = [index for index in left if index not in taken]

    def _add(self, rows: Tensor, values: Tensor, z: Tensor) -> None:
        seen = ~(values.isnan() | z.isnan())
        self.total[rows] += torch.where(seen, values, 0.0)
        self.visits[rows] += seen
        rate = torch.where(seen, 1 / self.visits[rows].clamp(1, self.window), 0.0)
        self.mean[rows] += rate * torch.where(seen, z - self.mean[rows], 0.0)
        diluted = (1 - rate).square() * self.dilution[rows] + rate.square()
        self.dilution[rows] = torch.where(rate < 1, diluted, 1.0)

    def fewest_visits(self, scored: slice, rows: list[int] | None = None) -> Tensor:
        """Visits of samples in the column of `scored` that has fewest, `(n,)`.

        Args:
            scored: the columns that flags go by.
            rows: of these samples; default all.
        """
        visits = self.visits.view(-1, self.columns)
        return (visits if rows is None else visits[rows])[:, scored].amin(dim=1)

    def scaled(self, between: Tensor, rows: list[int] | None = None, *, common: Tensor | None = None) -> Tensor:
        """Evidence in units of its standard deviation when nothing is memorized, `(n, columns)`.

        Args:
            between: `(columns,)` share of the variance that lies between samples.
            rows: of these samples; default all.
            common: `(n,)` variance of what all visits that are remembered of one have in common; default none.
        """
        chosen = slice(None) if rows is None else rows
        variance = between + (1 - between) * self.dilution.view(-1, self.columns)[chosen]
        variance = variance if common is None else variance + common[:, None]
        return self.mean.view(-1, self.columns)[chosen] / variance.sqrt()

    def share_between_samples(self) -> Tensor:
        """Share of variance between samples `(columns,)`, by the method of moments from these samples' evidence.

        Var(mean z) is `share + (1 − share) · dilution` when single visits have variance 1.
        """
        seen = (self.visits.view(-1, self.columns) > 1).double()
        count = seen.sum(dim=0)
        if not len(seen):
            return torch.zeros(self.columns, dtype=torch.float64)
        excess = (seen * (self.mean.square() - self.dilution)).sum(dim=0)
        room = (seen * (1 - self.dilution)).sum(dim=0)
        return torch.where(count < 2, 0.0, (excess / room.clamp(min=1e-12)).clamp(0.0, 0.95))

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {
            "keys": list(self.row),
            "visits": self.visits,
            "mean": self.mean,
            "dilution": self.dilution,
            "total": self.total,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.row = {key: row for row, key in enumerate(state["keys"])}
        self.visits, self.mean = state["visits"], state["mean"]
        self.dilution, self.total = state["dilution"], state["total"]
