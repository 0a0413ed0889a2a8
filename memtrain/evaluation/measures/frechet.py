"""Fréchet distance between two sets of features: FID with Inception's, CLIP-FID with CLIP's.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (NeurIPS 2017); CLIP features: Kynkäänniemi et
al., "The Role of ImageNet Classes in Fréchet Inception Distance" (ICLR 2023).
The name belongs to the network: with other features than Inception's the figure is no FID. Resizing matters as much
(Parmar et al., "On Aliased Resizing", CVPR 2022): figures of different programs are not comparable.
Suggested: 10,000 images or more; below the number of feature dimensions the covariance has no full rank and the
distance is far too large, which the result says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError


def frechet_distance(real: Tensor, generated: Tensor) -> dict[str, Any]:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), in fp64.

    Args:
        real: `(n, D)` features.
        generated: `(m, D)` features.

    Returns:
        `value`, `n_real`, `n_generated`, and `full_rank`: whether there are more images than dimensions in both.

    Raises:
        DataError: with fewer than two of one, or different dimensions.
    """
    flat = real.dim() == generated.dim() == 2
    if not flat or real.shape[1] != generated.shape[1] or min(len(real), len(generated)) < 2:
        raise DataError(
            f"Features of shape {tuple(real.shape)} and {tuple(generated.shape)}",
            expected="(n, D) and (m, D), with at least 2 images each",
            remedy="sample more images, with the same network for both",
        )
    x, y = real.double(), generated.double()
    first, second = (torch.atleast_2d(torch.cov(values.T)) for values in (x, y))
    # The eigenvalues of a product of two covariances are real and not negative, but for rounding.
    root = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    distance = (x.mean(dim=0) - y.mean(dim=0)).square().sum() + first.trace() + second.trace() - 2 * root
    return {
        "value": float(distance),
        "n_real": len(x),
        "n_generated": len(y),
        "full_rank": min(len(x), len(y)) > x.shape[1],
    }
