"""One denoising problem per sample: what the denoiser answered, what it should have, and what is made of the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.training.objective import Objective, loss_mask
from memtrain.training.pipelines.base import TrainablePipeline


@dataclass(frozen=True)
class Denoised:
    """What the denoiser made of one batch.

    Attributes:
        prediction: `(B, C, h, w)` its answer.
        target: `(B, C, h, w)` what it should be.
        mask: `(B, 1, h, w)` how much each place of the difference counts, or None.
        timesteps: `(B,)` int64.
        sample_loss: `(B,)` squared error of each sample, unweighted.
    """

    prediction: Tensor
    target: Tensor
    mask: Tensor | None
    timesteps: Tensor
    sample_loss: Tensor

    def losses(
        self, parts: TrainablePipeline, objective: Objective, *, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is trained on, and what the training step has to hand over for its samples to be watched.

        Args:
            parts: of the pipeline.
            objective: of the training.
            batch: of the step.

        Returns:
            Loss of each sample `(B,)` before weights; and the fields beside `loss` of what the step returns, none where
            the squared errors can be read from the gradient.
        """
        if objective.reads(batch):
            return self.sample_loss, {}
        losses = objective.trained_loss(
            self.prediction,
            self.target,
            mask=self.mask,
            snr=parts.signal_to_noise_ratio(self.timesteps),
            share=self.timesteps / parts.steps,
        )
        handed = {"sample_loss": self.sample_loss.detach(), "target": parts.as_output(self.target)}
        if self.mask is not None:
            handed["loss_mask"] = parts.as_output(self.mask.expand_as(self.target))
        return losses, handed


def denoise(
    parts: TrainablePipeline,
    objective: Objective,
    *,
    latents: Tensor,
    text: Mapping[str, Tensor],
    timesteps: Tensor,
    generator: torch.Generator,
    batch: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    perturbed: bool = True,
) -> Denoised:
    """Let the denoiser answer once.

    Args:
        parts: of the pipeline.
        objective: makes the noise.
        latents: `(B, C, h, w)` without noise.
        text: fields that hold the encoded captions.
        timesteps: `(B,)` int64.
        generator: source of the noise.
        batch: perhaps with a mask and with sizes of the images.
        dtype: of the denoiser's inputs, where it is not what they have.
        perturbed: whether input perturbation applies.
    """
    mask = loss_mask(batch, latents)
    # Noise must not be rounded to the type of a frozen autoencoder.
    latents = latents.float()
    noise = objective.noise(latents, generator)
    noisy, target = parts.noisy_and_target(latents, noise, timesteps)
    if perturbed and objective.input_perturbation:
        noisy, _ = parts.noisy_and_target(latents, objective.shown_noise(noise, generator), timesteps)
    if dtype is not None:
        noisy = noisy.to(dtype)
        text = {name: value.to(dtype) if value.is_floating_point() else value for name, value in text.items()}
    prediction = parts.predict(noisy, timesteps, text, batch=batch)
    sample_loss = objective.sample_loss(prediction, target, mask=mask)
    return Denoised(prediction, target, mask, timesteps, sample_loss)
