"""The timesteps of training: distributions to draw from, each a small class that a configuration names.

A timestep here is a share of noise times the number of timesteps. Timestep 0 has least noise, in flow matching too.
Uniform timesteps are the default. The other classes train more at timesteps where a paper found more to learn, or less
at timesteps that memorize:

| class | density of the share s of noise, from 0 to 1 | source |
|---|---|---|
| `LogitNormal` | that of sigmoid(N(mean, std²)) | Esser et al., "Scaling Rectified Flow Transformers", 2024 |
| `Mode` | heavier at the ends or in the middle, by `scale` | the same |
| `UShaped` | e^{a s} + e^{a (1 − s)}, or 1 / √(s (1 − s)) | Lee et al., "Improving the Training of Rectified \
Flows", 2024 |
| `BySNR` | as a weight of the loss depends on the SNR | Choi et al., "P2 weighting", 2022; Hang et al., 2023 |
| `Range` | constant from `low` to `high` | `min_timestep` and `max_timestep` of sd-scripts |

U-shaped timesteps are proposed against memorization (arXiv 2603.13421, whose abstract states no constants), because
overfitting was found at medium noise (Kollmann and Kaiser, 2026, arXiv 2603.13419). They are a trade: timesteps with
fewer visits are learned later. The monitor counts visits only up to `maximum_timestep`, so with more noise fewer visits
are evidence.

Cost: none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError


class TimestepSampler(ABC):
    """A distribution of timesteps."""

    @abstractmethod
    def draw(self, count: int, *, steps: int, generator: torch.Generator, snr: Tensor) -> Tensor:
        """Draw timesteps `(count,)` int64 from 0 to `steps` − 1, on the generator's device.

        Args:
            count: the number of timesteps to draw.
            steps: the number of timesteps of the model.
            generator: the source of randomness.
            snr: the signal-to-noise ratio of each timestep, `(steps,)`.
        """


class Uniform(TimestepSampler):
    """All timesteps are equally frequent (Ho et al., 2020)."""

    def draw(self, count: int, *, steps: int, generator: torch.Generator, snr: Tensor) -> Tensor:
        """Draw uniform timesteps."""
        return torch.randint(steps, (count,), generator=generator, device=generator.device)


class Range(TimestepSampler):
    """Uniform timesteps from `low` to `high` − 1.

    Args:
        low: the first timestep.
        high: one more than the last timestep.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def draw(self, count: int, *, steps: int, generator: torch.Generator, snr: Tensor) -> Tensor:
        """Draw uniform timesteps in the range."""
        if not 0 <= self.low < self.high <= steps:
            raise ConfigurationError(
                f"The timesteps from low={self.low} to high={self.high} are not those of the model",
                expected=f"0 <= low < high <= {steps}",
                remedy="correct objective.timesteps.init_args",
            )
        return torch.randint(self.low, self.high, (count,), generator=generator, device=generator.device)


class ContinuousSampler(TimestepSampler):
    """A density of the share of noise.

    Args:
        shift: the move toward noise, from s to shift s / (1 + (shift − 1) s), as in Esser et al. (2024) for large
            images; 1 changes nothing.
    """

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = _above_zero("shift", shift)

    @abstractmethod
    def share(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw shares of noise `(count,)` from 0 to 1, before the shift."""

    def draw(self, count: int, *, steps: int, generator: torch.Generator, snr: Tensor) -> Tensor:
        """Draw the timesteps that shares fall into."""
        share = self.share(count, generator)
        if self.shift != 1:
            share = self.shift * share / (1 + (self.shift - 1) * share)
        return (share * steps).long().clamp(0, steps - 1)


class LogitNormal(ContinuousSampler):
    """Most timesteps are at medium noise.

    In diffusers' scripts a positive mean is toward less noise, because their indices count from most noise.

    Args:
        mean: the mean; below 0 is toward less noise, above 0 toward more.
        std: the width.
        shift: the move toward noise; see :class:`ContinuousSampler`.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, *, shift: float = 1.0) -> None:
        super().__init__(shift)
        self.mean, self.std = mean, _above_zero("std", std)

    def share(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the logistic function of normal numbers."""
        return torch.sigmoid(self.mean + self.std * torch.randn(count, generator=generator, device=generator.device))


class Mode(ContinuousSampler):
    """The heavy-tailed density of Esser et al. (2024): 1 − u − scale (cos²(π u / 2) − 1 + u) of uniform u.

    Args:
        scale: the form, from −1 (more at the ends) over 0 (uniform) to 2 / (π − 2) (more in the middle); 1.29 there.
        shift: the move toward noise; see :class:`ContinuousSampler`.
    """

    def __init__(self, scale: float = 1.29, *, shift: float = 1.0) -> None:
        super().__init__(shift)
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ConfigurationError(
                f"Mode has scale={scale}, which gives no density",
                expected="a number from -1 to 2 / (pi - 2) = 1.75",
                remedy="correct objective.timesteps.init_args.scale; the paper uses 1.29",
            )
        self.scale = scale

    def share(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the function of uniform numbers."""
        u = torch.rand(count, generator=generator, device=generator.device)
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


class UShaped(ContinuousSampler):
    """Most timesteps are at the two ends, by inversion of the distribution function.

    Args:
        form: the density. `exponential` is e^{a s} + e^{a (1 − s)}. `arcsine` is 1 / √(s (1 − s)), which has no
            parameter and is called `u_shaped` in SimpleTuner.
        strength: the constant a of the exponential form; 4 there.
        shift: the move toward noise; see :class:`ContinuousSampler`.
    """

    def __init__(
        self, form: Literal["exponential", "arcsine"] = "exponential", *, strength: float = 4.0, shift: float = 1.0
    ) -> None:
        super().__init__(shift)
        self.form, self.strength = form, _above_zero("strength", strength)

    def share(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the inverse of the distribution function at uniform numbers."""
        u = torch.rand(count, generator=generator, device=generator.device)
        if self.form == "arcsine":
            return torch.sin(math.pi / 2 * u).square()
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.strength / 2)) / self.strength


class BySNR(TimestepSampler):
    """Draw each timestep as often as a weight of the loss in noise would count it, instead of using that weight.

    Args:
        rule: the weight. `min_snr` is min(SNR, gamma) / SNR. `p2` is 1 / (1 + SNR)^gamma.
        gamma: the constant of the rule; by default that of the papers, 5 for `min_snr` and 1 for `p2`.
    """

    def __init__(self, rule: Literal["min_snr", "p2"] = "min_snr", *, gamma: float | None = None) -> None:
        self.rule = rule
        self.gamma = _above_zero("gamma", {"min_snr": 5.0, "p2": 1.0}[rule] if gamma is None else gamma)

    def draw(self, count: int, *, steps: int, generator: torch.Generator, snr: Tensor) -> Tensor:
        """Draw timesteps by the cumulative sum of the weights."""
        ratio = snr.to(generator.device, torch.float64)
        # Without any signal, the limit of both rules is 1.
        weight = (self.gamma / ratio).clamp(max=1) if self.rule == "min_snr" else (1 + ratio) ** -self.gamma
        until = weight.cumsum(0)
        u = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.searchsorted(until / until[-1], u, right=True).clamp(max=steps - 1)


def _above_zero(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ConfigurationError(
            f"The timesteps have {name}={value}",
            expected="a number above 0",
            remedy=f"correct objective.timesteps.init_args.{name}",
        )
    return value
