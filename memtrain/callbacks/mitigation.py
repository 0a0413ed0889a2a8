"""What a mitigation is: a callback that gives each sample of a mini-batch a weight.

The monitor collects the mitigations among the trainer's callbacks and multiplies their weights at the gradient gate, so
they combine freely. A weight of 0 removes a sample from the mini-batch exactly; nothing skips a batch, a backward pass
or an optimizer step, so processes stay in step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.models.probe import Observation


@dataclass(frozen=True)
class Flags:
    """The monitor's verdict on the samples of a batch, before this visit.

    Attributes:
        now: `(B,)` bool, above the threshold.
        ever: `(B,)` bool, above it at some earlier visit.
        score: `(B,)` accumulated evidence, high when memorized.
    """

    now: Tensor
    ever: Tensor
    score: Tensor


class Mitigation(Callback):
    """Base of the mitigations."""

    @abstractmethod
    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Weight of each sample, `(B,)`, non-negative, on the device of the flags.

        Called when the loss gradient reaches the denoiser's output.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to run without a monitor, before any work is done."""
        from memtrain.callbacks.monitor import MemorizationMonitor

        if stage == "fit" and not any(isinstance(c, MemorizationMonitor) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigurationError(
                f"{type(self).__name__} is among the callbacks, but no MemorizationMonitor",
                expected="a monitor, which decides what is flagged",
                remedy="add memtrain.callbacks.monitor.MemorizationMonitor to trainer.callbacks",
            )
