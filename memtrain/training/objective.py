"""The per-sample training objective: how noise is made, and how each sample's error is weighted.

The denoising loss of Ho et al. (2020), kept per sample. Every option leaves the unweighted loss of each sample known,
which is what the watch goes by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from memtrain.functional.diffusion import min_snr_weight, per_sample_mse
from memtrain.training.timesteps import TimestepSampler, Uniform


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Options of the loss.

    Args:
        timesteps: which are drawn, and how often.
        min_snr_gamma: weight the loss by min-SNR-γ (Hang et al., 2023); None weights all timesteps alike.
        noise_offset: strength of a per-channel constant added to the noise.
    """

    timesteps: TimestepSampler = field(default_factory=Uniform)
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0

    def noise(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of the shape of `latents`, on their device."""
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        if self.noise_offset:
            shape = (*latents.shape[:2], 1, 1)
            noise = noise + self.noise_offset * torch.randn(shape, generator=generator, device=latents.device)
        return noise

    def sample_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Unweighted loss of each sample, `(B,)`, of predictions `(B, C, h, w)`."""
        return per_sample_mse(prediction, target)

    def weight(self, snr: Tensor, prediction_type: str) -> Tensor:
        """Weight of the loss at each signal-to-noise ratio, `(B,)`."""
        if self.min_snr_gamma is None:
            return torch.ones_like(snr, dtype=torch.float32)
        return min_snr_weight(snr, self.min_snr_gamma, prediction_type)
