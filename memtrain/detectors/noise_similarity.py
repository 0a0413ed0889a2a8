"""Noise similarity: a memorized prompt pulls every noise toward the same image.

Method: at the first step, δ = ε(x_T, prompt) − x_T for each of K initial noises, scaled to [0, 1] per image and
channel. The score of an image is the highest multi-scale SSIM of its δ with that of another seed. The score of a prompt
is the highest of all pairs.
Source: NeMo (Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 3.1).
Direction: higher means memorized.
Cost: one denoiser call per seed; K (K − 1) / 2 comparisons.
Suggested values: 10 seeds, as the paper. Differences from the published code: it evaluates the second timestep on the
unchanged first noise, and takes the data range of all pairs of a prompt together. This module takes the first timestep,
and the range 1 that the scaling gives, so that a score does not depend on other pairs. `published=True` follows the
published code, with one more denoiser run and the arithmetic of its version of torchmetrics
(:mod:`memtrain.functional.cropped_similarity`). The published code draws the noises of all seeds together, and predicts
without guidance. Sampling here draws each seed's noise separately;
:func:`memtrain.localization.threshold.pairwise_scores` has the published draw. The window follows the size of the
latents: 3 scales and 11 pixels from 44 pixels on, 2 scales from 22, 1 scale below, and 7 pixels for latents smaller
than 11. Scores of different sizes are not comparable.
Cannot: use fewer than two seeds, or latents smaller than 7 pixels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.functional.diffusion import predicted_noise
from memtrain.functional.noise import highest_similarity, noise_difference


class NoiseSimilarity(Detector):
    """Highest pairwise MS-SSIM of the noise differences of a prompt's seeds.

    Args:
        published: whether to follow NeMo's published code, with the second timestep on the first noise and the data
            range of all pairs of a prompt.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "one denoiser call per seed"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "latents"})

    def __init__(self, *, published: bool = False) -> None:
        self.published = published
        if published:
            self.needs = type(self).needs | {"denoise", "timesteps"}  # type: ignore[misc]  # for this instance only

    @property
    def name(self) -> str:
        """`noise_similarity`, or `noise_similarity_published`."""
        return "noise_similarity_published" if self.published else "noise_similarity"

    def extra_forwards(self, total: int) -> int:
        """One with `published`, for the second timestep, else none."""
        return int(self.published)

    def calls(self, total: int) -> int:
        """One: the first call."""
        return 1

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the scaled noise differences of the first call, `(B, C, h, w)`."""
        if step.index > 0:
            return None
        assert step.latents is not None  # the sampler checks `needs`
        prediction, timestep = step.conditional, step.timestep
        if self.published:
            assert step.denoise is not None
            timestep = step.timesteps[:2][-1]
            prediction = step.denoise(step.latents, timestep)[0]
        if step.prediction_type != "epsilon":
            prediction = predicted_noise(
                prediction,
                step.latents,
                alpha_cumprod=step.alpha_cumprod(timestep),
                prediction_type=step.prediction_type,
            )
        return noise_difference(prediction, step.latents)

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, 1, C, h, w)`.

        Raises:
            ConfigurationError: if there is a single seed.
        """
        data_range = None if self.published else 1.0
        return torch.stack(
            [
                highest_similarity(differences, data_range=data_range, cropped=self.published)
                for differences in readings[:, :, 0]
            ]
        )

    def score(self, readings: Tensor) -> Tensor:
        """Return the highest similarity of all pairs, `(P,)`."""
        return self.score_images(readings).amax(dim=1)
