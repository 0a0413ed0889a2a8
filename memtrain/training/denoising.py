"""One denoising problem per sample: the denoiser's answer, the target, and the loss of both."""

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
    """The denoiser's answer to one batch.

    Attributes:
        prediction: the answer of the denoiser, `(B, C, h, w)`.
        target: the right answer, `(B, C, h, w)`.
        mask: the weight of each place of the difference, `(B, 1, h, w)`, or None.
        timesteps: the timesteps, `(B,)` int64.
        sample_loss: the unweighted squared error of each sample, `(B,)`.
    """

    prediction: Tensor
    target: Tensor
    mask: Tensor | None
    timesteps: Tensor
    sample_loss: Tensor

    def losses(
        self, parts: TrainablePipeline, objective: Objective, *, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the trained losses, and the further fields by which a monitor watches the samples.

        Args:
            parts: the parts of the pipeline.
            objective: the objective of the training.
            batch: the batch of the step.

        Returns:
            The loss of each sample `(B,)` before weights, and the fields that the step returns in addition to `loss`.
            There are no fields if the squared errors can be read from the gradient.
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
        parts: the parts of the pipeline.
        objective: the objective, which makes the noise.
        latents: the latents without noise, `(B, C, h, w)`.
        text: the fields that hold the encoded captions.
        timesteps: the timesteps, `(B,)` int64.
        generator: the source of the noise.
        batch: the batch, which may have a mask and sizes of the images.
        dtype: the type of the denoiser's inputs; None keeps their types.
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
