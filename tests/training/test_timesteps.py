"""Timesteps have the densities that their classes name, by closed forms of the distribution functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import min_snr_weight, signal_to_noise_ratio
from memtrain.training.objective import Objective
from memtrain.training.timesteps import BySNR, LogitNormal, Mode, Range, TimestepSampler, Uniform, UShaped

STEPS, COUNT = 1000, 40_000
SNR = signal_to_noise_ratio(DDPMScheduler().alphas_cumprod, torch.arange(STEPS))


def drawn(sampler: TimestepSampler, *, count: int = COUNT, seed: int = 0) -> Tensor:
    return sampler.draw(count, steps=STEPS, generator=torch.Generator().manual_seed(seed), snr=SNR)


def distance(timesteps: Tensor, below: Callable[[Tensor], Tensor]) -> float:
    """Largest difference of the distribution functions, times √n: above 1.63 in 1 of 100 draws (Kolmogorov)."""
    counted = torch.bincount(timesteps, minlength=STEPS).double().cumsum(0) / len(timesteps)
    edges = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    return float((counted - below(edges)).abs().max()) * math.sqrt(len(timesteps))


def normal_below(value: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-value / math.sqrt(2))


def by_numbers(density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The distribution function of a density, by the midpoint rule."""
    fine = (torch.arange(200 * STEPS, dtype=torch.float64) + 0.5) / (200 * STEPS)
    summed = density(fine).cumsum(0)[199::200]
    return lambda edges: summed / summed[-1]


def mode_below(scale: float) -> Callable[[Tensor], Tensor]:
    """1 − u of the u that the share is made of, which falls with u; found by bisection."""

    def below(edges: Tensor) -> Tensor:
        low, high = torch.zeros_like(edges), torch.ones_like(edges)
        for _ in range(60):
            middle = (low + high) / 2
            share = 1 - middle - scale * (torch.cos(math.pi / 2 * middle) ** 2 - 1 + middle)
            low, high = torch.where(share > edges, middle, low), torch.where(share > edges, high, middle)
        return 1 - low

    return below


def weights_below(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda edges: weight.double().cumsum(0) / weight.double().sum()


CASES: dict[str, tuple[TimestepSampler, Callable[[Tensor], Tensor]]] = {
    "uniform": (Uniform(), lambda edges: edges),
    "range": (Range(100, 300), lambda edges: ((edges - 0.1) / 0.2).clamp(0, 1)),
    "logit normal": (LogitNormal(-0.5, 0.8), lambda edges: normal_below((edges.logit() + 0.5) / 0.8)),
    # shift s / (1 + (shift − 1) s) below x means s below x / (shift − (shift − 1) x).
    "shifted": (LogitNormal(shift=3.0), lambda edges: normal_below((edges / (3 - 2 * edges)).logit())),
    "middle": (Mode(1.29), mode_below(1.29)),
    "ends": (Mode(-0.8), mode_below(-0.8)),
    "exponential": (UShaped(), by_numbers(lambda s: torch.exp(4 * s) + torch.exp(4 * (1 - s)))),
    "arcsine": (UShaped("arcsine"), lambda edges: 2 / math.pi * torch.asin(edges.sqrt())),
    "min-SNR": (BySNR(), weights_below(min_snr_weight(SNR, 5.0, "epsilon"))),
    "P2": (BySNR("p2", gamma=0.5), weights_below((1 + SNR) ** -0.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_density_is_the_one_named(name: str) -> None:
    sampler, below = CASES[name]
    timesteps = drawn(sampler)
    assert timesteps.dtype == torch.int64
    assert 0 <= int(timesteps.min()) <= int(timesteps.max()) < STEPS
    assert distance(timesteps, below) < 1.63
    assert name == "uniform" or distance(timesteps, CASES["uniform"][1]) > 10, "the test tells densities apart"


def test_draws_depend_on_the_generator_alone() -> None:
    for sampler, _ in CASES.values():
        assert torch.equal(drawn(sampler, count=9), drawn(sampler, count=9))
        assert not torch.equal(drawn(sampler, count=9), drawn(sampler, count=9, seed=1))


def test_without_signal_a_timestep_is_still_drawn() -> None:
    """Noise schedules of zero terminal SNR end there."""
    snr = torch.tensor([1e4, 0.0])
    for rule in ("min_snr", "p2"):
        seen = BySNR(rule).draw(50, steps=2, generator=torch.Generator().manual_seed(0), snr=snr)  # type: ignore[arg-type]
        assert seen.float().mean() > 0.9


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"scale=2.*no density\n.*1\.75\n.*1\.29"):
        Mode(2.0)
    with pytest.raises(ConfigurationError, match="std=0"):
        LogitNormal(0.0, 0.0)
    with pytest.raises(ConfigurationError, match=r"low=5 to high=2000 are not those of the model\n.*high <= 1000"):
        Objective(timesteps=Range(5, 2000)).check("epsilon", SNR)
