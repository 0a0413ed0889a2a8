"""The criterion of the loss: the square of an error, its absolute value, or a mixture (Huber).

Source: pseudo-Huber losses with a threshold that depends on the timestep, Khrapov et al., "Improving Diffusion Models'
Data-Corruption Resistance using Scheduled Pseudo-Huber Loss", 2024, in the form of kohya's sd-scripts and diffusers'
research scripts:

| criterion | value for an error r |
|---|---|
| `mse` | r² |
| `l1` | abs(r) |
| `huber` | 2 c (√(r² + c²) − c), near r² below the threshold c, near 2 c abs(r) above it |
| `smooth_l1` | 2 (√(r² + c²) − c), near r² / c below it, near 2 abs(r) above it |

Cost: none. Suggested: `huber` with c = 0.1 and the schedule `snr` against outliers in the data, such as wrong captions.
Cannot: have its losses read from the gradient. The module passes squared errors on instead, so that watched values mean
the same under every criterion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Criterion = Literal["mse", "l1", "huber", "smooth_l1"]
"""The names of criteria."""

HuberSchedule = Literal["constant", "exponential", "snr"]
"""The names of rules by which the threshold depends on the timestep."""


def huber_threshold(schedule: HuberSchedule, c: float, *, snr: Tensor, share: Tensor) -> Tensor:
    """Compute the threshold at each timestep, `(B,)`.

    Args:
        schedule: the rule. `constant` is c. `exponential` goes from 1 without noise to c at the last timestep, c^share.
            `snr` goes from 1 to c, (1 − c) / (1 + σ)² + c with σ = 1 / √SNR.
        c: the threshold at the largest amount of noise.
        snr: the signal-to-noise ratios, `(B,)`.
        share: the timesteps over the number of timesteps, `(B,)`.
    """
    if schedule == "constant":
        return torch.full_like(snr, c)
    if schedule == "exponential":
        return c ** share.to(snr)
    return (1 - c) / (1 + snr.rsqrt()).square() + c


def elementwise(criterion: Criterion, prediction: Tensor, target: Tensor, *, threshold: Tensor) -> Tensor:
    """Apply the criterion to each element's error, in fp32 and in the shape of `prediction`.

    Args:
        criterion: the name of the criterion.
        prediction: the prediction, `(B, ...)`.
        target: the target, of the same shape.
        threshold: the threshold of `huber` and `smooth_l1`, `(B,)`.
    """
    errors = prediction.float() - target.float()
    if criterion == "mse":
        return errors.square()
    if criterion == "l1":
        return errors.abs()
    c = threshold.float().view(-1, *[1] * (errors.dim() - 1))
    # √(r² + c²) − c without the difference of two numbers that are nearly equal.
    bent = errors.square() / ((errors.square() + c.square()).sqrt() + c)
    return 2 * c * bent if criterion == "huber" else 2 * bent
