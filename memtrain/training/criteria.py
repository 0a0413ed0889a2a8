"""What the loss makes of an error: its square, its size, or something between (Huber).

Source: pseudo-Huber losses with a threshold that depends on the timestep, Khrapov et al., "Improving Diffusion Models'
Data-Corruption Resistance using Scheduled Pseudo-Huber Loss", 2024, in the form in which kohya's sd-scripts and
diffusers' research scripts have them:

| criterion | of an error r |
|---|---|
| `mse` | r² |
| `l1` | abs(r) |
| `huber` | 2 c (√(r² + c²) − c), near r² below the threshold c, near 2 c abs(r) above it |
| `smooth_l1` | 2 (√(r² + c²) − c), near r² / c below it, near 2 abs(r) above it |

Cost: none. Suggested: `huber` with c = 0.1 and the schedule `snr` against outliers in the data, such as wrong captions.
Cannot: have its losses read from the gradient; the module hands squared errors over instead, so that what is watched
means the same under every criterion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Criterion = Literal["mse", "l1", "huber", "smooth_l1"]
"""By name, what the loss makes of an error."""

HuberSchedule = Literal["constant", "exponential", "snr"]
"""By name, how the threshold depends on the timestep."""


def huber_threshold(schedule: HuberSchedule, c: float, *, snr: Tensor, share: Tensor) -> Tensor:
    """The threshold at each timestep, `(B,)`.

    Args:
        schedule: `constant`: c. `exponential`: from 1 without noise to c at the last timestep, c^share. `snr`: from 1
            to c, (1 − c) / (1 + σ)² + c with σ = 1 / √SNR.
        c: the threshold where there is most noise.
        snr: `(B,)` signal-to-noise ratio.
        share: `(B,)` timestep over the number of timesteps.
    """
    if schedule == "constant":
        return torch.full_like(snr, c)
    if schedule == "exponential":
        return c ** share.to(snr)
    return (1 - c) / (1 + snr.rsqrt()).square() + c


def elementwise(criterion: Criterion, prediction: Tensor, target: Tensor, *, threshold: Tensor) -> Tensor:
    """What the criterion makes of each element's error, in fp32 and of the shape of `prediction`.

    Args:
        criterion: as above.
        prediction: `(B, ...)`.
        target: same shape.
        threshold: `(B,)`, of `huber` and `smooth_l1`.
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
