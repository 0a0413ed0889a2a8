"""Loss skipping: a visit gets no gradient if its loss is low for its timestep.

Source: IET-AGC's anti-gradient control (Liu et al., "Iterative Ensemble Training with Anti-Gradient Control for
Mitigating Memorization in Diffusion Models", ECCV 2024). The rule keeps a running mean of the loss for each timestep.
It skips a visit if its loss is below that mean divided by `ratio`, and scales up the other visits so that the step
keeps its size. As published, it decides on single visits and on the loss itself, which mostly shows how easy an image
is.

This code keeps two traps of the published code. The means start at 0, so nothing is skipped at a timestep before its
first visit. They are updated sample by sample after the decision, also by skipped samples. The published means and the
share of kept samples belong to one process. Here they belong to the whole batch for any number of processes.

Cost: none on one process. Several processes make two small exchanges per batch, on the device. Every process needs the
same number of samples in its batch. Suggested: `published: liu2024`, the setting for Stable Diffusion. The paper's
CIFAR models have ratio 2. Cannot: name samples. The monitor's evidence does.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.monitoring import processes
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Effects, Needs
from memtrain.signals.denoising_loss import DenoisingLoss

STEPS = 1000
"""Timesteps with a mean of their own."""

PUBLISHED = {"liu2024": {"ratio": 1.25, "decay": 0.8}}
"""Constants of the published settings."""


class LossSkipping(MitigationCallback):
    """Skip visits by their loss.

    Args:
        ratio: divisor of the running mean. A visit is skipped if its loss times `ratio` is below the running mean. The
            default is the published value.
        decay: decay of the running mean; default the published value.
        published: the published setting whose constants are used; with None, `ratio` and `decay` are required.
    """

    def __init__(
        self,
        ratio: float | None = None,
        decay: float | None = None,
        *,
        published: Literal["liu2024"] | None = "liu2024",
    ) -> None:
        if published is not None and published not in PUBLISHED:
            raise ConfigurationError(
                f"published={published!r}", expected=f"one of {sorted(PUBLISHED)}, or None", remedy="set one of these"
            )
        constants = PUBLISHED[published] if published is not None else {}
        ratio = constants.get("ratio") if ratio is None else ratio
        decay = constants.get("decay") if decay is None else decay
        if ratio is None or decay is None or ratio < 1 or not 0 <= decay < 1:
            raise ConfigurationError(
                f"ratio={ratio}, decay={decay}",
                expected="a ratio of at least 1, a decay below 1",
                remedy="set such values",
            )
        self.ratio, self.decay = ratio, decay
        self.mean = torch.zeros(STEPS)
        self._loss = DenoisingLoss()

    def needs(self) -> Needs:
        """Ask for the loss of each sample."""
        return Needs(sample_loss=True)

    def effects(self) -> Effects:
        """State that the rule skips visits."""
        return Effects(skips=True)

    def open(self, host: Host) -> None:
        """Start with means of 0; the means of a checkpoint are loaded later."""
        self.mean = torch.zeros(STEPS)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return 0 for skipped visits and 1 for the others, `(B,)`; the monitor averages the batch over the others."""
        steps, loss = observation.timesteps.long().clamp(0, STEPS - 1), self._loss(observation)[:, 0]
        self.mean = self.mean.to(loss.device)
        kept = (loss * self.ratio >= self.mean[steps]).float()
        # Timesteps are small integers, which fp32 holds exactly, so one exchange carries both.
        all_steps, all_loss = processes.together(torch.stack([steps.to(loss), loss]))
        self.mean = running_mean(self.mean, all_steps.long(), all_loss, decay=self.decay)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Return the running means."""
        return {"mean": self.mean.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load saved means."""
        self.mean = state_dict["mean"]


def running_mean(mean: Tensor, steps: Tensor, values: Tensor, *, decay: float) -> Tensor:
    """`mean[step] ← decay · mean[step] + (1 − decay) · value` for one sample after the other, all at once.

    Values that are not finite are left out, because they would make the mean NaN for all later visits.

    Args:
        mean: the means so far, `(STEPS,)`.
        steps: indices into the means, `(B,)`; some may come several times.
        values: the new values, `(B,)`.
        decay: a number from 0 to below 1.

    Returns:
        The new means `(STEPS,)`.
    """
    same = steps[:, None] == steps[None, :]
    counted = same & values.isfinite()
    after = counted.triu(diagonal=1).sum(dim=1)
    share = (1 - decay) * torch.pow(decay, after.to(values))
    old = torch.pow(decay, counted.sum(dim=1).to(values)) * mean[steps]
    new = torch.where(counted, share * values, 0).sum(dim=1)
    # All samples of one timestep write the same number, so their order does not matter.
    return mean.index_put((steps,), old + new)
