"""Similarity of noise predictions between seeds: a memorized prompt pulls every noise to the same image.

What: at the first step, δ = ε(x_T, prompt) − x_T for each of K initial noises, scaled to [0, 1] per image and channel;
the score of an image is the highest multi-scale SSIM of its δ with another seed's, that of a prompt the highest of all
pairs.
Source: NeMo (Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 3.1).
Direction: higher means memorized.
Cost: one denoiser call per seed; K (K − 1) / 2 comparisons.
Suggested values: 10 seeds, as the paper.
Differences from the published code: it evaluates the second timestep on the unchanged first noise, and takes the data
range of all pairs of a prompt together; this takes the first timestep, and the range 1 that the scaling gives, so that
a score does not depend on what else is compared. `published=True` does as the published code, for one more denoiser
run, in the arithmetic of its version of torchmetrics (:mod:`memtrain.functional.cropped_similarity`). Its noises are
one draw for all seeds, and it predicts without guidance; sampling here gives each seed its own noise, and
:func:`memtrain.localization.threshold.pairwise_scores` has that draw, too. The window follows the latents' size: 3
scales and 11 pixels from 44 pixels on, 2 from 22, 1 below, and 7 pixels for latents smaller than 11. Scores of
different sizes are not comparable.
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
        published: as NeMo's published code: the second timestep on the first noise, and the data range of all pairs of
            a prompt.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "one denoiser call per seed"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "latents"})

    def __init__(self, *, published: bool = False) -> None:
        self.published = published
        if published:
            self.needs = type(self).needs | {"denoise", "timesteps"}  # type: ignore[misc]  # of this instance alone

    @property
    def name(self) -> str:
        """`noise_similarity`, or `noise_similarity_published`."""
        return "noise_similarity_published" if self.published else "noise_similarity"

    def extra_forwards(self, total: int) -> int:
        """One for the second timestep."""
        return int(self.published)

    def calls(self, total: int) -> int:
        """The first."""
        return 1

    def read(self, step: DenoiserStep) -> Tensor | None:
        """`(B, C, h, w)` scaled noise differences of the first call."""
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
        """`(P, K)` from readings `(P, K, 1, C, h, w)`.

        Raises:
            ConfigurationError: with a single seed.
        """
        data_range = None if self.published else 1.0
        return torch.stack(
            [
                highest_similarity(differences, data_range=data_range, cropped=self.published)
                for differences in readings[:, :, 0]
            ]
        )

    def score(self, readings: Tensor) -> Tensor:
        """`(P,)`: the highest of all pairs."""
        return self.score_images(readings).amax(dim=1)
