"""Text-conditional noise of a training sample, the change of the prediction by the caption. High means memorized.

Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024), who skip
training samples by it; the norm is that of :func:`memtrain.functional.guidance.guidance_norm`, at the timestep and
noise of the training step. Here it is compared with the same sample's norm under the base model, as a logarithm of the
ratio.

Cost: a forward pass without gradients on every `every`-th batch. Other visits have no value and are no evidence. The
signal doubles the cost of the reference profile. Suggested: `every: 4`. If the caption also arrives in a pooled form
(SDXL, SD3, FLUX) or with a mask (PixArt, Sana), all forms are replaced. Cannot: measure the guidance of SDXL's
sampling, which uses zeros for an empty caption. Here the empty caption is encoded, as in training with dropped
captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.functional.guidance import guidance_norm
from memtrain.models.observation import Observation
from memtrain.signals.base import Signal

SMALLEST = 1e-12
"""Norms are clamped to this before the logarithm."""


class GuidanceNorm(Signal):
    """Norm of the difference between conditional and unconditional prediction, `(B, 1)`.

    Args:
        every: number of batches between two measurements.
    """

    name = "guidance_norm"
    memorized_when = "high"

    def __init__(self, every: int = 4) -> None:
        if every < 1:
            raise ConfigurationError(f"every={every}", expected="at least 1", remedy="change it")
        self.unconditional_every = every

    def columns(self, sites: Sequence[str]) -> list[str]:
        """One column."""
        return [self.name]

    def __call__(self, observation: Observation) -> Tensor:
        """Return the norm; NaN if the batch has no unconditional prediction."""
        if observation.prediction is None:
            raise ProbeError("The observation holds no prediction", remedy="let the probe keep calls (keep_call=True)")
        if observation.unconditional is None:
            return torch.full((len(observation.prediction), 1), torch.nan, device=observation.prediction.device)
        return guidance_norm(observation.prediction, observation.unconditional)[:, None]

    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """ln(norm / norm under the base model)."""
        return self.absolute(values) - self.absolute(reference)

    def absolute(self, values: Tensor) -> Tensor:
        """ln(norm)."""
        return values.clamp(min=SMALLEST).log()
