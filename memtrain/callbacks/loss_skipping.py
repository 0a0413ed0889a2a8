"""Loss skipping: a visit whose loss is low for its timestep gets no gradient.

Source: IET-AGC's anti-gradient control (Liu et al., "Iterative Ensemble Training with Anti-Gradient Control for
Mitigating Memorization in Diffusion Models", ECCV 2024). A running mean of the loss is kept for each timestep; a visit
is skipped when its loss is below that mean divided by `ratio`, and the others are scaled up so that the step keeps its
size. As published, it decides on single visits and on the loss itself, which mostly says how easy an image is.

Traps of the published code that are kept: the means start at 0, so nothing is skipped at a timestep before its first
visit; they are updated sample by sample after the decision, also by skipped ones, and are not shared between processes.

Cost: none. Suggested: `ratio` 1.25 for Stable Diffusion, 2 for the paper's CIFAR models. Cannot: name samples; that is
the monitor's evidence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import Flags, Mitigation
from memtrain.errors import ConfigurationError
from memtrain.models.probe import Observation
from memtrain.signals.denoising_loss import DenoisingLoss

STEPS = 1000
"""Timesteps with a mean of their own."""


class LossSkipping(Mitigation):
    """Skip visits by their loss.

    Args:
        ratio: a visit is skipped when its loss times `ratio` is below the running mean.
        decay: of the running mean.
    """

    def __init__(self, ratio: float = 1.25, decay: float = 0.8) -> None:
        if ratio < 1 or not 0 <= decay < 1:
            raise ConfigurationError(
                f"ratio={ratio}, decay={decay}", expected="a ratio of at least 1, a decay below 1", remedy="change them"
            )
        self.ratio, self.decay = ratio, decay
        self.mean = torch.zeros(STEPS)
        self._loss = DenoisingLoss()

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """0 for skipped visits, B / kept for the others, `(B,)`."""
        loss = self._loss(observation)[:, 0]
        steps = observation.timesteps.long().clamp(0, STEPS - 1)
        self.mean = self.mean.to(loss.device)
        kept = (loss * self.ratio >= self.mean[steps]).float()
        for step, value in zip(steps, loss, strict=True):
            # Indexing with a tensor of one element keeps the step on the device.
            index = step[None]
            self.mean[index] = self.decay * self.mean[index] + (1 - self.decay) * value
        return kept * (len(kept) / kept.sum().clamp(min=1))

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"mean": self.mean.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self.mean = state_dict["mean"]
