"""Visits on their way from the device to the evidence.

A training step must not wait for the device. So a batch's values are packed into one small tensor. Its copy to the host
starts at once and is read long after the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.models.observation import Observation
from memtrain.models.transfer import HostCopy


@dataclass
class Visits:
    """The visits of one batch on one process.

    Attributes:
        batch: number of batches since the start of training.
        rank: rank of the process.
        epoch: number of the epoch.
        step: number of optimizer steps before this batch.
        keys: B sample keys.
        score: evidence `(B,)` before these visits, on the host.
        flagged: flags `(B,)` bool before these visits, on the host.
        packed: values `(B, 3 + columns)`: timestep, prompt length (NaN if unknown), weight and signal values, and then
            the base model's values if these come with the visit. Signal values are NaN if the caption was dropped.
        recorded: whether the rows are in the record table.
    """

    batch: int
    rank: int
    epoch: int
    step: int
    keys: list[str]
    score: Tensor
    flagged: Tensor
    packed: HostCopy
    recorded: bool = False

    @staticmethod
    def pack(observation: Observation, weights: Tensor, values: Tensor) -> HostCopy:
        """Start the copy of a batch's values to the host, `(B, 3 + columns)`."""
        timesteps = observation.timesteps.float()
        length = observation.prompt_length
        lengths = torch.full_like(timesteps, torch.nan) if length is None else length.to(timesteps)
        return HostCopy(torch.cat([torch.stack([timesteps, lengths, weights.to(timesteps)], 1), values.float()], 1))

    @property
    def timesteps(self) -> list[float]:
        """Return B timesteps."""
        return list(self.packed.read()[:, 0].tolist())

    @property
    def lengths(self) -> list[float]:
        """Return B prompt lengths, NaN if unknown."""
        return list(self.packed.read()[:, 1].tolist())

    @property
    def values(self) -> Tensor:
        """Return signal values `(B, columns)`."""
        return self.packed.read()[:, 3:]

    def rows(self, columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Return rows of the record table; `columns` names the signal values."""
        count, packed = len(self.keys), self.packed.read()
        return {
            "key": self.keys,
            "epoch": [self.epoch] * count,
            "step": [self.step] * count,
            "batch": [self.batch] * count,
            "rank": [self.rank] * count,
            "timestep": packed[:, 0].round().int().tolist(),
            "prompt_length": [None if length != length else int(length) for length in packed[:, 1].tolist()],
            **dict(zip(columns, packed[:, 3:].T.tolist(), strict=True)),
            "score": self.score.tolist(),
            "flagged": self.flagged.tolist(),
            "weight": packed[:, 2].tolist(),
        }

    @staticmethod
    def from_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[Visits]:
        """Return visits of earlier batches from their rows in the record table, ordered by batch and rank."""
        batches: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in rows:
            batches.setdefault((row["batch"], row["rank"]), []).append(row)
        found = []
        for (batch, rank), group in sorted(batches.items()):
            names = ("timestep", "prompt_length", "weight", *columns)
            packed = [[torch.nan if row[name] is None else row[name] for name in names] for row in group]
            found.append(
                Visits(
                    batch,
                    rank,
                    group[0]["epoch"],
                    group[0]["step"],
                    [row["key"] for row in group],
                    torch.tensor([row["score"] for row in group]),
                    torch.tensor([row["flagged"] for row in group]),
                    HostCopy(torch.tensor(packed, dtype=torch.float32)),
                    recorded=True,
                )
            )
        return found
