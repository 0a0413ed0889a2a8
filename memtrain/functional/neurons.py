"""Value neurons of cross-attention: their activation for a prompt, and how unusual it is.

Source: NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in Diffusion Models",
NeurIPS 2024, section 3.2). A neuron is an output channel of a value projection; it sees the text only, so its
activation does not depend on the image, the timestep or the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def neuron_activation(values: Tensor) -> Tensor:
    """Mean absolute activation of each neuron over all text tokens, padding included (as NeMo).

    Args:
        values: `(B, T, C)` output of a value projection.

    Returns:
        `(B, C)` in fp32.
    """
    return values.float().abs().mean(dim=1)


def neuron_z_score(activation: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Distance of each activation from other prompts' mean, in their standard deviations.

    Args:
        activation: `(B, C)`.
        mean: `(C,)` over reference prompts.
        std: `(C,)` over reference prompts, unbiased.

    Returns:
        `(B, C)`, non-negative; 0 where the reference prompts do not differ.
    """
    distance = (activation - mean).abs()
    return torch.where(std > 0, distance / std.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def scale_neurons(values: Tensor, scale: Tensor, *, rows: Tensor | None = None) -> Tensor:
    """Values with neurons scaled, in some samples or all; the others stay bit for bit what they are.

    Args:
        values: `(B, T, C)` output of a value projection.
        scale: `(C,)`, or `(B, C)` with one per sample.
        rows: `(B,)` bool, the samples; None for all.

    Returns:
        `(B, T, C)`, with a graph to every value: a factor of 0 gives a gradient of 0, not none.
    """
    scaled = values * (scale if scale.dim() == 1 else scale[:, None]).to(values)
    return scaled if rows is None else torch.where(rows.view(-1, 1, 1), scaled, values)
