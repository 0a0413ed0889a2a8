"""Distances of images without rounding, so that ties are ties and the order is the same on every machine.

Pixels are integers, and so are their squared distances. A matrix product in single precision is exact, in any order of
summation, as long as every partial sum is an integer that fp32 holds exactly. So the product is taken over pieces short
enough for that, and the pieces are added in fp64. The result does not depend on matrix library, threads and processor.
The factors have 8 bits, so TF32 holds them, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_TERMS = 1024
"""Products of two pixels, 2¹⁴ at most each, that may be added in single precision: 2²⁴ / 2¹⁴."""


def centred_pixels(images: Tensor) -> Tensor:
    """Convert `(n, ...)` uint8 to `(n, d)` fp32, integers from -128 to 127: smaller numbers allow longer exact sums."""
    return images.flatten(1).float().sub_(128)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances of all pairs of images, in grey levels, exact below 2⁵³.

    Cost: a matrix product in fp32, and one addition in fp64 per 1024 of its multiplications.

    Args:
        a: pixels `(n, d)`, from :func:`centred_pixels`.
        b: pixels `(m, d)`, from the same function.

    Returns:
        `(n, m)` fp64, integers.
    """
    squared = a.new_zeros(len(a), len(b), dtype=torch.float64)
    of_a, of_b = squared.new_zeros(len(a), 1), squared.new_zeros(len(b))
    for some, others in zip(a.split(EXACT_TERMS, dim=1), b.split(EXACT_TERMS, dim=1), strict=True):
        squared.sub_(some @ others.T, alpha=2)
        of_a += some.square().sum(dim=1, keepdim=True)
        of_b += others.square().sum(dim=1)
    return squared.add_(of_a).add_(of_b)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances row by row, `(n,)`, of two inputs `(n, d)`, one of which may be `(d,)`."""
    return (a - b).square_().sum(dim=1, dtype=torch.float64)


def unit_distance(squared: Tensor) -> Tensor:
    """Return the distance for pixel values in [0, 1] from a squared distance in grey levels."""
    return squared.sqrt() / 255
