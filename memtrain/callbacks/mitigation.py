"""What a mitigation is: a callback that changes a batch, weights its samples, or adds a penalty to the loss.

The monitor collects the mitigations among the trainer's callbacks. It multiplies their weights at the gradient gate and
adds their penalties to the loss, so they combine freely. Where one of them skips visits as published, the product is
scaled up, once, so that the batch mean becomes the mean over the samples to which none of all mitigations gives 0. A
weight of 0 removes a sample from the mini-batch exactly; nothing skips a batch, a backward pass or an optimizer step,
so processes stay in step. Weights do not touch penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.models.backbones.base import Backbone
from memtrain.models.observation import Observation


def _never(keys: Sequence[str]) -> Sequence[int]:
    return [0] * len(keys)


@dataclass(frozen=True)
class Flags:
    """The monitor's verdict on the samples of a batch, before this visit.

    Attributes:
        now: `(B,)` bool, above the threshold.
        ever: `(B,)` bool, above it at some earlier visit.
        score: `(B,)` accumulated evidence, high when memorized.
        threshold: score above which a sample is flagged; infinite until there is one.
        keys: B sample keys.
        everyone: keys of all samples of the run that were above it at some visit.
        visits: counted visits of any samples of the run, by their keys, the same on every process.
        ready: `(B,)` bool, visited often enough to be flagged; None if that is unknown.
    """

    now: Tensor
    ever: Tensor
    score: Tensor
    threshold: float = float("inf")
    keys: Sequence[str] = ()
    everyone: Collection[str] = ()
    visits: Callable[[Sequence[str]], Sequence[int]] = _never
    ready: Tensor | None = None


class Mitigation(Callback):
    """Base of the mitigations; a subclass overrides what it needs of `prepare`, `weights`, `penalty` and the rest.

    Attributes:
        needs_graph: the penalty needs the token attention with its graph.
        needs_reference: signals whose values under the base model `observation.reference` has to hold.
        needs_unconditional: `observation.unconditional` has to be there in every batch.
        needs_loss: `weights` reads each sample's denoising loss from the gradient.
        edits_training: its hooks make forwards with gradients those of another network than the one that forwards
            without gradients run.
        skips: weights are 0 and 1, and the batch mean has to become the mean over what is kept.
        changes_samples: `prepare` puts other samples into the batch, and is called before that of the others.
        changes_captions: a visit may train on another text than the sample's caption.
        reads_captions: what it takes from a visit is only right under the sample's own caption.
        key_field: field of the batch that holds the sample keys; the monitor's, once training is set up.
    """

    needs_graph: ClassVar[bool] = False
    needs_reference: ClassVar[tuple[str, ...]] = ()
    needs_unconditional: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False
    edits_training: ClassVar[bool] = False
    skips: ClassVar[bool] = False
    changes_samples: ClassVar[bool] = False
    changes_captions: ClassVar[bool] = False
    reads_captions: ClassVar[bool] = False
    key_field: str = "key"

    @property
    def flagged_only(self) -> bool:
        """Whether it does nothing but with flagged samples that are in the batch."""
        return False

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: LightningModule) -> None:
        """Put own hooks on the denoiser, before the probe puts its; default nothing.

        Args:
            denoiser: as the host calls it, wrapped or not.
            backbone: its family.
            module: the host.
        """

    def detach(self) -> None:
        """Remove own hooks; called once or more when training ends, however it ends."""

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Change the batch in place before the forward pass; default nothing.

        Whatever is drawn at random has to depend on `number` and the samples' keys, or their places in the global
        batch, alone, so that the same batch is treated alike on one process and on several, and after a resume.

        Args:
            batch: as the module gets it, on its device.
            flags: on the host.
            tokenizer: the module's, or None.
            number: batches since the start of training, the same on every process.
        """

    def synchronize(self, gather: Callable[[Any], list[Any]]) -> None:
        """Merge what the processes have collected since the last call; default nothing.

        Args:
            gather: one picklable value of this process to the values of all, in the order of ranks. Every process calls
                it equally often.
        """

    def exporting(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Within this context the denoiser is as it shall be exported; default as it is."""
        return nullcontext()

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Weight of each sample, `(B,)`, non-negative, on the device of the flags; default ones.

        Called when the loss gradient reaches the denoiser's output.
        """
        return torch.ones_like(flags.score)

    def penalty(self, observation: Observation, flags: Flags) -> Tensor | None:
        """Penalty of each sample, `(B,)` with a graph, whose batch mean is added to the loss; default none.

        Called before the backward pass: there is no gradient yet.
        """
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to run without a monitor, before any work is done."""
        from memtrain.callbacks.monitor import MemorizationMonitor

        monitors = [c for c in trainer.callbacks if isinstance(c, MemorizationMonitor)]  # type: ignore[attr-defined]
        if stage == "fit" and not monitors:
            raise ConfigurationError(
                f"{type(self).__name__} is among the callbacks, but no MemorizationMonitor",
                expected="a monitor, which decides what is flagged",
                remedy="add memtrain.callbacks.monitor.MemorizationMonitor to trainer.callbacks",
            )
        if (
            stage == "fit"
            and self.needs_reference
            and not all(monitor.options.reference is True for monitor in monitors)
        ):
            raise ConfigurationError(
                f"{type(self).__name__} compares with the base model's profile, but the monitor measures none",
                expected="`reference: true`",
                remedy="let the monitor measure one, or leave this mitigation out",
            )
        missing = {name for monitor in monitors for name in self.needs_reference if name not in monitor.names}
        if stage == "fit" and missing:
            raise ConfigurationError(
                f"{type(self).__name__} needs the signal {sorted(missing)}, which the monitor does not measure",
                expected="that signal among the monitor's `signals`",
                remedy="add it, or leave this mitigation out",
            )
        if stage == "fit":
            self.key_field = monitors[0].key_field
