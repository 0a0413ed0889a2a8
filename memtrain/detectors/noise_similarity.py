"""Similarity of noise predictions between seeds: a memorized prompt pulls every noise to the same image.

What: at the first step, δ = ε(x_T, prompt) − x_T for each of K initial noises, scaled to [0, 1] per image and channel;
the score of an image is the highest multi-scale SSIM of its δ with another seed's, that of a prompt the highest of all
pairs.
Source: NeMo (Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 3.1).
Direction: higher means memorized.
Cost: one denoiser call per seed; K (K − 1) / 2 comparisons.
Suggested values: 10 seeds, as the paper.
Differences from the published code: it evaluates the second timestep on the unchanged first noise, and takes the data
range of the whole batch of pairs; this takes the first timestep, and the range 1 that the scaling gives, so that a
score does not depend on what else is compared. The window follows the latents' size: 3 scales and 11 pixels from 41
pixels on, 2 from 22, 1 below, and 7 pixels for latents smaller than 11. Scores of different sizes are not comparable.
Cannot: use fewer than two seeds, or latents smaller than 7 pixels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError


class NoiseSimilarity(Detector):
    """Highest pairwise MS-SSIM of the noise differences of a prompt's seeds."""

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "one denoiser call per seed"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "latents"})

    @property
    def name(self) -> str:
        """`noise_similarity`."""
        return "noise_similarity"

    def calls(self, total: int) -> int:
        """The first."""
        return 1

    def read(self, step: DenoiserStep) -> Tensor | None:
        """`(B, C, h, w)` scaled noise differences of the first call."""
        if step.index > 0:
            return None
        assert step.latents is not None  # the sampler checks `needs`
        return noise_difference(step.conditional, step.latents)

    def score_images(self, readings: Tensor) -> Tensor:
        """`(P, K)` from readings `(P, K, 1, C, h, w)`.

        Raises:
            ConfigurationError: with a single seed.
        """
        differences = readings[:, :, 0]
        prompts, seeds = differences.shape[:2]
        if seeds < 2:
            raise ConfigurationError(
                "NoiseSimilarity compares the images of a prompt, and there is one",
                expected="at least two seeds",
                remedy="sample more images per prompt, or leave the detector out",
            )
        first, second = torch.triu_indices(seeds, seeds, offset=1)
        similarity = torch.zeros(prompts, seeds, seeds)
        for prompt in range(prompts):
            pairs = pairwise_similarity(differences[prompt, first], differences[prompt, second])
            similarity[prompt, first, second] = pairs
            similarity[prompt, second, first] = pairs
        return similarity.amax(dim=2)

    def score(self, readings: Tensor) -> Tensor:
        """`(P,)`: the highest of all pairs."""
        return self.score_images(readings).amax(dim=1)


def noise_difference(prediction: Tensor, noise: Tensor) -> Tensor:
    """ε − x_T, scaled to [0, 1] over the pixels of each image and channel.

    Args:
        prediction: `(B, C, h, w)`.
        noise: same shape, what the denoiser was given.

    Returns:
        Same shape, fp32.
    """
    difference = prediction.float() - noise.float()
    low, high = difference.amin(dim=(2, 3), keepdim=True), difference.amax(dim=(2, 3), keepdim=True)
    return (difference - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)


def pairwise_similarity(first: Tensor, second: Tensor) -> Tensor:
    """MS-SSIM of images in [0, 1], pair by pair, with a window that fits their size.

    Args:
        first: `(n, C, h, w)`.
        second: same shape.

    Returns:
        `(n,)`.

    Raises:
        ConfigurationError: for images smaller than 7 pixels.
    """
    size = min(first.shape[-2:])
    if size < 7:
        raise ConfigurationError(
            f"Structural similarity of latents of {size} pixels says nothing",
            expected="latents of at least 7 pixels",
            remedy="leave NoiseSimilarity out",
        )
    scales = 3 if size >= 41 else 2 if size >= 22 else 1
    window, sigma = (11, 1.5) if size >= 11 else (7, 0.8)
    return multiscale_structural_similarity_index_measure(
        first,
        second,
        kernel_size=window,
        sigma=sigma,
        betas=(0.33,) * scales,
        data_range=1.0,
        normalize="relu",
        reduction="none",
    )
