"""Noise differences of a denoiser's first call, and how similar they are between seeds.

Source: NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in Diffusion Models",
NeurIPS 2024, section 3.1): for a memorized prompt, δ = ε(x_T, prompt) − x_T is similar for every noise x_T. The paper
writes SSIM; its published code takes the multi-scale SSIM of Wang et al. (2003) on three scales. The data range there
is the range of all pairs compared at once, separately on each scale. That range is `data_range=None` here: a score then
depends on the other pairs. The range 1, which scaled differences have, is the default. The published scores also leave
out the borders of the last scale, which `cropped=True` does here (:mod:`memtrain.functional.cropped_similarity`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from memtrain.errors import ConfigurationError
from memtrain.functional.cropped_similarity import cropped_ms_ssim

EXPONENT = 0.33
"""Exponent of each scale, as in NeMo's published code."""
SMALLEST = 7
"""Side in pixels below which structural similarity is not defined here."""


@dataclass(frozen=True)
class SimilarityWindow:
    """Settings of MS-SSIM for images of one size.

    Attributes:
        scales: number of scales, each half as large as the one before.
        kernel: side of the Gaussian window, pixels.
        sigma: standard deviation of the window, pixels.
    """

    scales: int
    kernel: int
    sigma: float

    @staticmethod
    def of(height: int, width: int) -> SimilarityWindow:
        """Return the window: the paper's 3 scales and 11 pixels from 44 pixels on, where torchmetrics allows them.

        Raises:
            ConfigurationError: for images smaller than 7 pixels.
        """
        size = min(height, width)
        if size < SMALLEST:
            raise ConfigurationError(
                f"Structural similarity is not defined for latents of {height} x {width} pixels",
                expected=f"latents of at least {SMALLEST} pixels on each side",
                remedy="use larger images, or leave out the methods that compare noise predictions",
            )
        if size < 11:
            return SimilarityWindow(scales=1, kernel=7, sigma=0.8)
        return SimilarityWindow(scales=3 if size >= 44 else 2 if size >= 22 else 1, kernel=11, sigma=1.5)


def noise_difference(prediction: Tensor, noise: Tensor) -> Tensor:
    """Return ε − x_T, scaled to [0, 1] over the pixels of each image and channel.

    Args:
        prediction: predictions `(B, C, h, w)`.
        noise: input of the denoiser, same shape.

    Returns:
        Same shape, fp32.
    """
    difference = prediction.float() - noise.float()
    low, high = difference.amin(dim=(2, 3), keepdim=True), difference.amax(dim=(2, 3), keepdim=True)
    return (difference - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)


def pairwise_similarity(
    first: Tensor, second: Tensor, *, data_range: float | None = 1.0, cropped: bool = False
) -> Tensor:
    """Return the MS-SSIM of images in [0, 1], pair by pair, with the window for their size.

    Args:
        first: images `(n, C, h, w)`.
        second: images of the same shape.
        data_range: range of the images; None for the range of all n pairs together on each scale, like NeMo's published
            code.
        cropped: whether the borders of the last scale are left out, like torchmetrics 1.3.2, which gave NeMo's
            published scores.

    Returns:
        `(n,)`.

    Raises:
        ConfigurationError: for images smaller than 7 pixels.
    """
    window = SimilarityWindow.of(first.shape[-2], first.shape[-1])
    if not len(first):
        return first.new_zeros(0)
    exponents = (EXPONENT,) * window.scales
    if cropped:
        return cropped_ms_ssim(
            first, second, kernel=window.kernel, sigma=window.sigma, exponents=exponents, data_range=data_range
        )
    similarity: Tensor = multiscale_structural_similarity_index_measure(
        first,
        second,
        kernel_size=window.kernel,
        sigma=window.sigma,
        betas=exponents,
        data_range=data_range,
        normalize="relu",
        reduction="none",
    )
    return similarity


def similarity_matrix(differences: Tensor, *, data_range: float | None = 1.0, cropped: bool = False) -> Tensor:
    """Return the similarity of every image with every other one; the diagonal is zero.

    Args:
        differences: scaled differences `(K, C, h, w)` of one prompt, K at least 2.
        data_range: range as in :func:`pairwise_similarity`.
        cropped: choice as in :func:`pairwise_similarity`.

    Returns:
        `(K, K)`, symmetric.

    Raises:
        ConfigurationError: for fewer than two images, or too small ones.
    """
    count = len(differences)
    if count < 2:
        raise ConfigurationError(
            f"The similarity between seeds compares the images of a prompt, found {count}",
            expected="at least two seeds",
            remedy="use more seeds",
        )
    first, second = torch.triu_indices(count, count, offset=1, device=differences.device)
    pairs = pairwise_similarity(differences[first], differences[second], data_range=data_range, cropped=cropped)
    matrix = pairs.new_zeros(count, count)
    matrix[first, second] = pairs
    return torch.maximum(matrix, matrix.T)


def highest_similarity(differences: Tensor, *, data_range: float | None = 1.0, cropped: bool = False) -> Tensor:
    """Return the highest similarity of each image with another one, `(K,)`; arguments as in :func:`similarity_matrix`.

    Raises:
        ConfigurationError: for fewer than two images, or too small ones.
    """
    return similarity_matrix(differences, data_range=data_range, cropped=cropped).amax(dim=1)
