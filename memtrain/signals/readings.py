"""Several signals read together. Each sample has one row of values, and each signal its own columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memtrain.models.observation import Observation
from memtrain.signals.base import FittedSignal, Signal


class Readings:
    """The values of several signals, side by side.

    Args:
        signals: the signals in the order of their columns.
        sites: the attention sites of the probe.
    """

    def __init__(self, signals: Sequence[Signal], sites: Sequence[str]) -> None:
        self.signals = list(signals)
        self.columns: list[str] = []
        self.slices: dict[str, slice] = {}
        for signal in self.signals:
            names = signal.columns(sites)
            self.slices[signal.name] = slice(len(self.columns), len(self.columns) + len(names))
            self.columns += names

    @property
    def fitted(self) -> list[FittedSignal]:
        """The signals that must see the samples under the base model first."""
        return [signal for signal in self.signals if isinstance(signal, FittedSignal)]

    @property
    def resolution(self) -> Tensor:
        """Smallest meaningful spread of each column, `(columns,)`; see :class:`Signal`."""
        return torch.tensor([s.resolution for s in self.signals for _ in range(*self.slices[s.name].indices(1 << 30))])

    def read(self, observation: Observation) -> Tensor:
        """Return the values `(B, columns)` of an observation in fp32."""
        return torch.cat([signal(observation) for signal in self.signals], dim=1).float()

    def compare(self, values: Tensor, base: Tensor | None) -> Tensor:
        """Compare values with the base model's `(B, columns)`, or keep them if there are none; NaN if not finite."""
        parts = []
        for signal in self.signals:
            own = values[:, self.slices[signal.name]]
            reference = None if base is None else base[:, self.slices[signal.name]]
            parts.append(signal.absolute(own) if reference is None else signal.relative(own, reference))
        compared = torch.cat(parts, dim=1)
        return compared.masked_fill(~compared.isfinite(), torch.nan)

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Return the columns of each signal in `values` `(B, columns)`, by name."""
        return {name: values[:, columns] for name, columns in self.slices.items()}
