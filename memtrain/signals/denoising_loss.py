"""Denoising loss of each sample. A low loss means memorized.

Source: IET-AGC (Liu et al., "Iterative Ensemble Training with Anti-Gradient Control for Mitigating Memorization in
Diffusion Models", ECCV 2024) skips samples whose loss is low for their timestep. Here the loss is compared with the
same sample's loss under the base model, as reference-model membership tests do, because the plain loss mostly says
how easy an image is.

Cost: none. A host can hand over the loss of each sample. Otherwise the loss is read from the gradient, because the
gradient of a batch-mean MSE at the denoiser's output is the scaled residual in every trainer.

Cannot: read losses that are not a (weighted) batch mean of squared errors. A host that weights samples, or multiplies
the mean by a constant, must declare the weights (:mod:`memtrain.monitoring.loss_weight`). An undeclared factor enters
the reading squared. A visit with a weight of 0 has no value. In training, :mod:`memtrain.monitoring.loss_check`
compares every batch with the host's loss and refuses a loss that it cannot read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memtrain.errors import ProbeError
from memtrain.functional.diffusion import loss_from_gradient
from memtrain.models.observation import Observation
from memtrain.signals.base import Signal

SMALLEST = 1e-12
"""Losses are clamped to this before the logarithm."""


class DenoisingLoss(Signal):
    """Mean squared error of each sample's prediction, `(B, 1)`; compared as a logarithm of the ratio."""

    name = "denoising_loss"
    memorized_when = "low"

    def columns(self, sites: Sequence[str]) -> list[str]:
        """One column."""
        return [self.name]

    def __call__(self, observation: Observation) -> Tensor:
        """Return `sample_loss` if it is known, or else the loss read from the gradient."""
        if observation.sample_loss is not None:
            return observation.sample_loss.detach().float()[:, None]
        if observation.gradient is None:
            raise ProbeError("The observation holds neither a loss nor a gradient", remedy="read it after backward")
        return loss_from_gradient(observation.gradient, observation.loss_scale, observation.loss_weight)[:, None]

    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """ln(loss / loss under the base model)."""
        return self.absolute(values) - self.absolute(reference)

    def absolute(self, values: Tensor) -> Tensor:
        """ln(loss)."""
        return values.clamp(min=SMALLEST).log()
