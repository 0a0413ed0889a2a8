"""Which timesteps are trained on: distributions to draw from, each a small class that a configuration names."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class TimestepSampler(ABC):
    """A distribution of timesteps."""

    @abstractmethod
    def draw(self, count: int, *, steps: int, generator: torch.Generator) -> Tensor:
        """Timesteps `(count,)` int64 from 0 to `steps` − 1, on the generator's device."""


class Uniform(TimestepSampler):
    """All alike (Ho et al., 2020)."""

    def draw(self, count: int, *, steps: int, generator: torch.Generator) -> Tensor:
        """Uniform."""
        return torch.randint(steps, (count,), generator=generator, device=generator.device)
