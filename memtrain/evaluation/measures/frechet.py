"""Fréchet distance between two sets of features: FID with Inception's, CLIP-FID with CLIP's.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (NeurIPS 2017). For CLIP features, Kynkäänniemi
et al., "The Role of ImageNet Classes in Fréchet Inception Distance" (ICLR 2023).
Only Inception's features give an FID; a figure by other features has another name. Resizing matters as much (Parmar et
al., "On Aliased Resizing", CVPR 2022), so figures of different programs are not comparable.
Suggested: 10,000 images or more. With fewer images than feature dimensions, the covariance has no full rank, and the
distance is far too large; `full_rank` in the result shows this.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError


def frechet_distance(real: Tensor, generated: Tensor) -> dict[str, Any]:
    """Compute ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) in fp64.

    Args:
        real: the features of real images, `(n, D)`.
        generated: the features of generations, `(m, D)`.

    Returns:
        `value`, `n_real`, `n_generated`, and `full_rank`: whether there are more images than dimensions in both.

    Raises:
        DataError: if there are fewer than two images of one kind, or the dimensions differ.
    """
    flat = real.dim() == generated.dim() == 2
    if not flat or real.shape[1] != generated.shape[1] or min(len(real), len(generated)) < 2:
        raise DataError(
            f"Features of shape {tuple(real.shape)} and {tuple(generated.shape)}",
            expected="(n, D) and (m, D), with at least 2 images each",
            remedy="sample more images, with the same network for both",
        )
    return {
        "value": frechet_value(real, generated),
        "n_real": len(real),
        "n_generated": len(generated),
        "full_rank": min(len(real), len(generated)) > real.shape[1],
    }


def frechet_value(real: Tensor, generated: Tensor) -> float:
    """Compute the distance of two sets of features, `(n, D)` and `(m, D)`.

    The eigenvalues of Σ₁Σ₂ are the squared singular values of X Yᵀ / √((n − 1)(m − 1)) for centred features X and Y, so
    with fewer images than dimensions a small matrix replaces a large one.
    """
    x, y = real.double(), generated.double()
    shift = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    x, y = ((one - one.mean(dim=0)) / math.sqrt(len(one) - 1) for one in (x, y))
    spread = x.square().sum() + y.square().sum()
    if min(len(x), len(y)) < x.shape[1]:
        root = torch.linalg.svdvals(x @ y.T).sum()
    else:
        # The eigenvalues of a product of two covariances are real and not negative, except for rounding.
        root = torch.linalg.eigvals((x.T @ x) @ (y.T @ y)).real.clamp(min=0).sqrt().sum()
    return float(shift + spread - 2 * root)
