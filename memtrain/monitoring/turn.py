"""The state of one batch from before its forward pass to after its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.models.transfer import to_device
from memtrain.monitoring import processes
from memtrain.monitoring.loss_check import LossCheck
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.visits import Visits


@dataclass
class Turn:
    """The state of one batch, created when the batch begins.

    Attributes:
        number: number of batches since the start of training.
        step: number of optimizer steps before this batch.
        flags: the verdict on its samples before this visit, on the host.
        observation: the probe's observation of it.
        mitigations: the mitigations of the run.
        batch: the batch of the training step.
        loss_weight: function from timesteps `(B,)` to the host's weights of samples; None for equal weights.
        loss_check: object that compares losses read from the gradient with the host's loss.
        weights: factors `(B,)` of the samples' gradients, once they are decided.
        differentiated: whether a backward pass was announced.
        penalized: whether penalties have been added to the loss after the denoiser's forward.
        heldout: B values, true for samples held out by weight; empty if none is.
        twins: `(B,)` bool on the device, true for copies of pictures held out by weight; None if none is known.
        handed: whether the host hands over its losses, so that weights act in their mean and not on a gradient.
        scaled: whether the loss that penalties are added to has the loss scale already.
    """

    number: int
    step: int
    flags: Flags
    observation: Observation
    mitigations: Sequence[Mitigation]
    loss_weight: Callable[[Tensor], Tensor | None]
    batch: Any = None
    loss_check: LossCheck | None = None
    weights: Tensor | None = None
    differentiated: bool = False
    penalized: bool = False
    heldout: Sequence[bool] = ()
    twins: Tensor | None = None
    handed: bool = False
    scaled: bool = True

    def decide(self, observation: Observation) -> Tensor | None:
        """Return the samples' weights when the loss gradient arrives (the gate); None leaves the gradient unchanged."""
        if self.handed:
            return None
        if self.loss_check is not None:
            self.loss_check.gradient_arrives()
        if self.penalizing and not self.differentiated and observation.gradient is not None:
            raise ConfigurationError(
                f"The penalty of {type(self.penalizing[0]).__name__} was not added, because the loss was not shown",
                expected="self.manual_backward(loss), with which Lightning shows the loss to callbacks",
                remedy="write self.manual_backward(loss) instead of loss.backward()",
            )
        observation.loss_weight = self.loss_weight(observation.timesteps)
        device = observation.timesteps.device
        self.weights = torch.ones(len(observation.keys), device=device)
        if not self.mitigations and not self.heldout and self.twins is None:
            return None
        flags = self.flags.on(device)
        for mitigation in self.mitigations:
            self.weights = self.weights * mitigation.weights(observation, flags)
        if (trained := self._trained(device)) is not None:
            self.weights = self.weights * trained
        if any(mitigation.effects().skips for mitigation in self.mitigations):
            self.weights = self.weights * processes.share_of_mean((self.weights > 0).float())
        return self.weights

    def trained_nothing(self, *, seen_before: bool) -> bool:
        """Return whether the step skipped its batch, as it returned None or trained another network only.

        Args:
            seen_before: whether earlier batches were visits, so that the probe would see the denoiser if it ran.
        """
        if self.handed or self.observation.gradient is not None:
            return False
        ran = bool(self.observation.timesteps.numel())
        return not self.differentiated or (seen_before and not ran)

    @property
    def penalizing(self) -> list[Mitigation]:
        """Return the mitigations with a penalty; most have none, and then flags need not be copied to the device."""
        return [mitigation for mitigation in self.mitigations if type(mitigation).penalty is not Mitigation.penalty]

    def penalize(self, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss, in place, on its scale."""
        for penalty in self.penalties(loss.device):
            loss.add_(penalty * self.observation.loss_scale if self.scaled else penalty)

    def penalties(self, device: torch.device) -> list[Tensor]:
        """Return the batch mean of each penalty, `()` with a graph."""
        flags = self.flags.on(device)
        found = [mitigation.penalty(self.observation, flags) for mitigation in self.penalizing]
        trained = self._trained(device)
        kept = [penalty if trained is None else trained * penalty for penalty in found if penalty is not None]
        return [penalty.mean() for penalty in kept]

    def _trained(self, device: torch.device) -> Tensor | None:
        """Return 0 for samples held out by weight and their copies, 1 for others, `(B,)`; None if there are none."""
        trained = 1.0 - to_device(torch.tensor(self.heldout), device).float() if self.heldout else None
        if self.twins is None:
            return trained
        others = 1.0 - self.twins.to(device).float()
        return others if trained is None else trained * others

    def visits(self, values: Tensor, *, rank: int, epoch: int) -> Visits:
        """Return the batch as visits, on their way to the host.

        Args:
            values: signal values `(B, columns)`, followed by the base model's values if these come with the visit.
            rank: the rank of this process.
            epoch: the epoch of the batch.
        """
        if self.observation.caption_dropped:
            dropped = to_device(torch.tensor(self.observation.caption_dropped), values.device)
            values = values.masked_fill(dropped[:, None], torch.nan)
        assert self.weights is not None
        return Visits(
            self.number,
            rank,
            epoch,
            self.step,
            list(self.observation.keys),
            self.flags.score,
            self.flags.now,
            Visits.pack(self.observation, self.weights, values),
        )
