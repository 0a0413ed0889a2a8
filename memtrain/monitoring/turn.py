"""One batch's turn: what is known of it and decided about it, from before its forward pass to after its backward."""

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
    """The state of one batch; born when the batch begins.

    Attributes:
        number: batches since the start of training.
        step: optimizer steps taken before this batch.
        flags: verdict on its samples before this visit, on the host.
        observation: what the probe sees of it.
        mitigations: of the run.
        batch: as the training step gets it.
        loss_weight: `(B,)` timesteps to the weights that the host gives samples, None for equal ones.
        loss_check: compares the losses read from the gradient with the host's, in the first batches.
        weights: `(B,)` what the samples' gradients are multiplied by, once that is decided.
        differentiated: whether a backward pass was announced.
        penalized: whether the loss after the denoiser's forward has got what is added to it.
        heldout: B, true for samples that are held out by weight; empty if none is.
        twins: `(B,)` bool on the device, true for copies of pictures that are held out by weight; None: none is known.
        handed: whether the host hands its losses over, so that weights act in their mean and not on a gradient.
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
        """The gate: weights of the samples, called when the loss gradient arrives; None leaves the gradient alone."""
        if self.handed:
            return None
        if self.loss_check is not None:
            self.loss_check.gradient_arrives()
        if self.penalizing and not self.differentiated and observation.gradient is not None:
            raise ConfigurationError(
                f"The penalty of {type(self.penalizing[0]).__name__} was not added: the loss was differentiated unseen",
                expected="self.manual_backward(loss), through which Lightning tells callbacks of it",
                remedy="write self.manual_backward(loss) in place of loss.backward()",
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
        """Whether the step left its batch out: it returned None, or trained another network alone.

        Args:
            seen_before: earlier batches were visits, so that the denoiser would be seen if it ran.
        """
        if self.handed or self.observation.gradient is not None:
            return False
        ran = bool(self.observation.timesteps.numel())
        return not self.differentiated or (seen_before and not ran)

    @property
    def penalizing(self) -> list[Mitigation]:
        """Those with a penalty; most have none, and copying flags to the device for nothing would cost every step."""
        return [mitigation for mitigation in self.mitigations if type(mitigation).penalty is not Mitigation.penalty]

    def penalize(self, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss, in place, on its scale."""
        for penalty in self.penalties(loss.device):
            loss.add_(penalty * self.observation.loss_scale if self.scaled else penalty)

    def penalties(self, device: torch.device) -> list[Tensor]:
        """The batch mean of each penalty, `()` with a graph."""
        flags = self.flags.on(device)
        found = [mitigation.penalty(self.observation, flags) for mitigation in self.penalizing]
        trained = self._trained(device)
        kept = [penalty if trained is None else trained * penalty for penalty in found if penalty is not None]
        return [penalty.mean() for penalty in kept]

    def _trained(self, device: torch.device) -> Tensor | None:
        """0 for samples that are held out by weight and copies of them, 1 for the others, `(B,)`; None if all are."""
        trained = 1.0 - to_device(torch.tensor(self.heldout), device).float() if self.heldout else None
        if self.twins is None:
            return trained
        others = 1.0 - self.twins.to(device).float()
        return others if trained is None else trained * others

    def visits(self, values: Tensor, *, rank: int, epoch: int) -> Visits:
        """The batch as visits, on their way to the host.

        Args:
            values: `(B, columns)` signal values, and after them the base model's where these come with the visit.
            rank: this process.
            epoch: that the batch belongs to.
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
