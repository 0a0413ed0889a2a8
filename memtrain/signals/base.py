"""What a signal is: a map from an observation to one value per sample, or one per sample and attention site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from memtrain.models.observation import Observation


class Signal(ABC):
    """A per-sample training signal.

    Attributes:
        name: its name in configurations, columns and reports.
        memorized_when: `low` or `high` as published; `unknown` where the sign differs between sites.
        resolution: on the scale of :meth:`relative`, the smallest spread between samples that means anything; for
            values without noise, which do not differ at all before training.
        needs_neurons: reads `observation.neuron_activation`.
        unconditional_every: reads `observation.unconditional`, which costs a forward pass, on every so many batches; 0
            if it does not.
    """

    name: str
    memorized_when: ClassVar[Literal["low", "high", "unknown"]]
    resolution: ClassVar[float] = 1e-12
    needs_neurons: ClassVar[bool] = False
    unconditional_every: int = 0

    @abstractmethod
    def columns(self, sites: Sequence[str]) -> list[str]:
        """Names of the values, given the probe's sites."""

    @abstractmethod
    def __call__(self, observation: Observation) -> Tensor:
        """Values `(B, columns)` of an observation, detached; NaN where this visit was not measured."""

    @abstractmethod
    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """Values compared with those of the same samples under the base model; shapes as in :meth:`__call__`."""

    @abstractmethod
    def absolute(self, values: Tensor) -> Tensor:
        """Values on the scale of :meth:`relative` where there is no reference."""


class FittedSignal(Signal):
    """A signal that has to look at the samples under the base model before any value is asked for."""

    @abstractmethod
    def fit(self, observations: Iterable[Observation]) -> None:
        """Look at samples under the base model."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What :meth:`fit` found, as plain types and tensors; empty before."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
