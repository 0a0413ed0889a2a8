"""The base of signals. A signal maps an observation to one value per sample, or per sample and attention site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from memtrain.models.observation import Observation


class Signal(ABC):
    """A per-sample training signal.

    Attributes:
        name: name of the signal in configurations, columns and reports.
        memorized_when: `low` or `high` as published; `unknown` if the sign differs between sites.
        resolution: smallest meaningful spread between samples, on the scale of :meth:`relative`. Values without noise
            need it, because they do not differ before training.
        needs_neurons: whether the signal reads `observation.neuron_activation`.
        unconditional_every: number of batches between two readings of `observation.unconditional`, each of which costs
            a forward pass; 0 if the signal does not read it.
    """

    name: str
    memorized_when: ClassVar[Literal["low", "high", "unknown"]]
    resolution: ClassVar[float] = 1e-12
    needs_neurons: ClassVar[bool] = False
    unconditional_every: int = 0

    @abstractmethod
    def columns(self, sites: Sequence[str]) -> list[str]:
        """Return the names of the values for the probe's sites."""

    @abstractmethod
    def __call__(self, observation: Observation) -> Tensor:
        """Return detached values `(B, columns)` of an observation; NaN if this visit was not measured."""

    @abstractmethod
    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """Compare values with the values of the same samples under the base model; shapes as in :meth:`__call__`."""

    @abstractmethod
    def absolute(self, values: Tensor) -> Tensor:
        """Return values on the scale of :meth:`relative` without a reference."""


class FittedSignal(Signal):
    """A signal that must see the samples under the base model before it computes a value."""

    @abstractmethod
    def fit(self, observations: Iterable[Observation]) -> None:
        """Read samples under the base model."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the result of :meth:`fit` as plain types and tensors; empty before it."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
