"""What a signal is: a map from an observation to one value per sample, or one per sample and attention site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from memtrain.models.probe import Observation


class Signal(ABC):
    """A per-sample training signal.

    Attributes:
        name: its name in configurations, columns and reports.
        memorized_when: `low` or `high` as published; `unknown` where the sign differs between sites.
    """

    name: str
    memorized_when: ClassVar[Literal["low", "high", "unknown"]]

    @abstractmethod
    def columns(self, sites: Sequence[str]) -> list[str]:
        """Names of the values, given the probe's sites."""

    @abstractmethod
    def __call__(self, observation: Observation) -> Tensor:
        """Values `(B, columns)` of an observation, detached."""

    @abstractmethod
    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """Values compared with those of the same samples under the base model; shapes as in :meth:`__call__`."""

    @abstractmethod
    def absolute(self, values: Tensor) -> Tensor:
        """Values on the scale of :meth:`relative` where there is no reference."""
