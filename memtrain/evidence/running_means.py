"""Evidence per sample over visits: running means of z-scores on one scale for few and for many visits.

Samples have lasting differences, not only differences from visit to visit. The share of variance between samples is
estimated from samples without memorization, and the evidence is divided by the standard deviation that follows.

Cost: a visit uses only its own rows of arrays that grow by doubling, for any number of samples. Figures about all
samples are updated with each visit (:mod:`memtrain.evidence.visit_counts`) or estimated from a uniform sample
(:mod:`memtrain.evidence.reservoir`), which holds all samples up to 8,192.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.evidence import reservoir
from memtrain.evidence.growing_rows import GrowingRows
from memtrain.evidence.kept_arrays import packed_counts, packed_names, unpacked_counts, unpacked_names
from memtrain.evidence.reservoir import Reservoir
from memtrain.evidence.visit_counts import VisitCounts

Sign = Literal["low", "high", "unknown"]
"""Side on which a memorized sample's values lie; `unknown` for columns that differ in sign."""
Rows = Sequence[int] | Tensor
"""Rows of samples."""


def signed_score(evidence: Tensor, memorized_when: Sign) -> Tensor:
    """Turn evidence `(n, columns)` of one signal into a score `(n,)`, high when memorized."""
    if memorized_when == "unknown":
        return evidence.square().mean(dim=1).sqrt()
    return evidence.mean(dim=1) * (1 if memorized_when == "high" else -1)


class Evidence:
    """Accumulated evidence of a set of samples; grows as new keys appear.

    Args:
        columns: number of values per visit.
        window: number of visits that the running mean remembers.

    Attributes:
        row: the row of each key.
        names: the key of each row.
        arrays: the values by row, where other classes may add arrays.
        counts: number of visits of all samples in the column with the fewest.
    """

    def __init__(self, columns: int, window: int = 12) -> None:
        self.columns, self.window = columns, window
        self.row: dict[str, int] = {}
        self.names: list[str] = []
        self.arrays, self.counts = GrowingRows(), VisitCounts()
        self.arrays.add("visits", 0, width=columns, dtype=torch.int32)
        self.arrays.add("place", 0, dtype=torch.long)
        for name in ("mean", "total"):
            self.arrays.add(name, 0.0, width=columns)
        self._samples: dict[int, Reservoir] = {}

    @property
    def visits(self) -> Tensor:
        """The counted visits by value, `(n, columns)`, because some visits lack a value."""
        return self.arrays["visits"]

    @property
    def mean(self) -> Tensor:
        """The running mean of z, `(n, columns)`."""
        return self.arrays["mean"]

    @property
    def total(self) -> Tensor:
        """The sum of the compared values over the counted visits, not standardised, `(n, columns)`."""
        return self.arrays["total"]

    @property
    def dilution(self) -> Tensor:
        """The sum of squared weights in the mean, `(n, columns)`: 1 / visits at first, then 1 / (2 window − 1)."""
        return self._dilution(self.visits)

    def _dilution(self, visits: Tensor) -> Tensor:
        table = dilutions(self.window)
        return table[visits.clamp(max=len(table) - 1).long()]

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Return the rows of `keys`; unknown keys get new rows."""
        new = [key for key in dict.fromkeys(keys) if key not in self.row]
        if new:
            first = len(self.names)
            self.row.update((key, row) for row, key in enumerate(new, start=first))
            self.names += new
            self.arrays.grow(len(self.names))
            self.arrays["place"][first:] = torch.tensor([reservoir.place(key) for key in new])
        return [self.row[key] for key in keys]

    def add(self, rows: Sequence[int], values: Tensor, z: Tensor) -> None:
        """Take in visits in order.

        Args:
            rows: B rows of the samples; a sample may occur several times.
            values: compared values `(B, columns)`, NaN without a value.
            z: the same values as z-scores.
        """
        touched = torch.tensor(list(dict.fromkeys(rows)), dtype=torch.long)
        before = self.fewest_visits(touched)
        left = list(range(len(rows)))
        while left:
            # Visits of one sample must be taken one after the other, but visits of different samples need not.
            turn = list({rows[index]: index for index in reversed(left)}.values())
            self._add(torch.tensor([rows[index] for index in turn]), values[turn], z[turn])
            taken = set(turn)
            left = [index for index in left if index not in taken]
        self.visited(touched, before)

    def _add(self, rows: Tensor, values: Tensor, z: Tensor) -> None:
        seen = ~(values.isnan() | z.isnan())
        self.total[rows] += torch.where(seen, values.double(), 0.0)
        visits, mean = self.visits[rows] + seen, self.mean[rows]
        rate = torch.where(seen, 1 / visits.clamp(1, self.window).double(), 0.0)
        self.visits[rows] = visits
        self.mean[rows] = mean + rate * torch.where(seen, z.double() - mean, 0.0)

    def visited(self, rows: Tensor, before: Tensor) -> None:
        """Update the counts for rows `(B,)`, each once, with their visits `before`."""
        after = self.fewest_visits(rows)
        self.counts.move(before.tolist(), after.tolist())
        for sample in self._samples.values():
            ready = rows[(before < sample.visits) & (after >= sample.visits)]
            if len(ready):
                sample.offer(ready, self.arrays["place"][ready])

    def remove(self, key: str) -> None:
        """Remove a sample; the last sample takes its row."""
        row, last = self.row.pop(key), len(self.names) - 1
        self.counts.move(self.fewest_visits([row]).tolist(), [0])
        self.names[row] = self.names[last]
        if row != last:
            self.row[self.names[row]] = row
        del self.names[last]
        self.arrays.remove(row)
        for sample in self._samples.values():
            sample.remove(row, last=last)

    def sample(self, visits: int) -> Tensor:
        """Return the rows of all samples if there are few, `(n,)`, or a uniform sample of rows with `visits`."""
        if len(self.names) <= reservoir.MOST:
            return torch.arange(len(self.names))
        if visits not in self._samples:
            self._samples[visits] = Reservoir(visits)
            ready = (self.fewest_visits() >= visits).nonzero()[:, 0]
            self._samples[visits].offer(ready, self.arrays["place"][ready])
        return self._samples[visits].rows

    def fewest_visits(self, rows: Rows | None = None) -> Tensor:
        """Return the visits of samples in the column with the fewest, `(n,)`.

        Args:
            rows: rows of the samples; default all.
        """
        return (self.visits if rows is None else self.visits[rows]).amin(dim=1)

    def scaled(self, between: Tensor, rows: Rows | None = None, *, common: Tensor | None = None) -> Tensor:
        """Return evidence in units of its standard deviation without memorization, `(n, columns)`.

        Args:
            between: share of the variance between samples, `(columns,)`.
            rows: rows of the samples; default all.
            common: variance of the common part of all remembered visits of a sample, `(n,)`; default none.
        """
        chosen = slice(None) if rows is None else rows
        variance = between + (1 - between) * self._dilution(self.visits[chosen])
        variance = variance if common is None else variance + common[:, None]
        return self.mean[chosen] / variance.sqrt()

    def share_between_samples(self) -> Tensor:
        """Estimate the share of variance between samples `(columns,)` by the method of moments from their evidence.

        Var(mean z) is `share + (1 − share) · dilution` if single visits have variance 1.
        """
        rows = self.sample(2)
        visits = self.visits[rows]
        seen, dilution = (visits > 1).double(), self._dilution(visits)
        count = seen.sum(dim=0)
        if not len(seen):
            return torch.zeros(self.columns, dtype=torch.float64)
        excess = (seen * (self.mean[rows].square() - dilution)).sum(dim=0)
        room = (seen * (1 - dilution)).sum(dim=0)
        return torch.where(count < 2, 0.0, (excess / room.clamp(min=1e-12)).clamp(0.0, 0.95))

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors, 16 bytes a sample and column, with compressed names and visits."""
        return {
            "names": packed_names(self.names),
            "visits": packed_counts(self.visits),
            "mean": self.mean.clone(),
            "total": self.total.clone(),
        }

    def load_state_dict(self, state: dict[str, Any], columns: slice = slice(None)) -> None:
        """Take up a saved state.

        Args:
            state: the state from :meth:`state_dict`, or from an earlier version, which kept all columns of a visit.
            columns: the needed columns of an earlier version's state.
        """
        earlier = "keys" in state
        names = list(state["keys"]) if earlier else unpacked_names(state["names"])
        self.arrays.clear()
        self.row, self.names, self._samples = {}, [], {}
        self.rows(names)
        for name in ("visits", "mean", "total"):
            kept = unpacked_counts(state[name]) if name == "visits" and not earlier else state[name]
            self.arrays[name][:] = (kept[:, columns] if earlier and kept.numel() else kept).view(-1, self.columns)
        self.counts = VisitCounts.of(self.fewest_visits())


@lru_cache(maxsize=32)
def dilutions(window: int) -> Tensor:
    """Return the sum of squared weights in a running mean by number of visits, until it stays constant, fp64."""
    found = [1.0, 1.0]
    while len(found) <= window or found[-1] != found[-2]:
        rate = 1 / min(len(found), window)
        found.append((1 - rate) * (1 - rate) * found[-1] + rate * rate)
    return torch.tensor(found, dtype=torch.float64)
