"""The weights of the loss by timestep.

Min-SNR, the usual choice, is :func:`memtrain.functional.diffusion.min_snr_weight`.

The errors in noise ε, in v (Salimans and Ho, 2022), in the velocity u of a flow (Lipman et al., 2023) and in the clean
image x₀ are multiples of each other at a timestep. With SNR = (signal / noise)², and σ the share of noise of a flow:

    err_x₀² = err_ε² / SNR = err_v² / (SNR + 1) = σ² err_u²

| weighting | factor of err_x₀² | source |
|---|---|---|
| `debiased` | √SNR | Yu et al., "Debias the Training of Diffusion Models", 2023 |
| `as_epsilon` | SNR: as if the model predicted noise | `scale_v_pred_loss_like_noise_pred` of sd-scripts |
| `as_velocity` | SNR + 1: as if it predicted v | the idea of `v_pred_like_loss` of sd-scripts |
| `sigma_sqrt` | 1 / σ⁴ (of err_u²: 1 / σ²) | Esser et al., "Scaling Rectified Flow Transformers", 2024, as diffusers |
| `cosmap` | of err_u²: 2 / (π (1 − 2 σ + 2 σ²)) | the same |

sd-scripts weights v under `debiased` by 1 / (SNR + 1), which is another objective than for noise. Here the objective is
the same for both. The last two weightings are for flows only.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["none", "debiased", "as_epsilon", "as_velocity", "sigma_sqrt", "cosmap"]
"""The names of weightings of timesteps."""

OF_FLOWS = ("sigma_sqrt", "cosmap")
"""Weightings that are defined by the share of noise of a flow."""

MOST_SIGNAL, LEAST_SIGNAL = 1e6, 1e-6
"""Signal-to-noise ratios beyond which weights do not change; σ of a flow is from 0.001 to 0.999."""


def timestep_weight(weighting: Weighting, snr: Tensor, *, prediction_type: str) -> Tensor:
    """Compute the weight of the loss in the predicted quantity, `(B,)`.

    Args:
        weighting: the name of the weighting.
        snr: the signal-to-noise ratios, `(B,)`.
        prediction_type: `epsilon`, `v_prediction` or `flow_prediction`.
    """
    snr = snr.float().clamp(LEAST_SIGNAL, MOST_SIGNAL)
    sigma = 1 / (1 + snr.sqrt())
    if weighting == "none":
        return torch.ones_like(snr)
    if weighting == "sigma_sqrt":
        return sigma**-2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))
    of_clean = {"debiased": snr.sqrt(), "as_epsilon": snr, "as_velocity": snr + 1}[weighting]
    return of_clean * clean_error(snr, prediction_type)


def clean_error(snr: Tensor, prediction_type: str) -> Tensor:
    """Return the squared error of the clean image over that of the predicted quantity, `(B,)`."""
    if prediction_type == "flow_prediction":
        return (1 + snr.sqrt()) ** -2
    return 1 / (snr + 1 if prediction_type == "v_prediction" else snr)
