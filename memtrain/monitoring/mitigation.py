"""The base of mitigations: rules that change a batch, weight its samples, or add a penalty to the loss.

The engine multiplies the weights of all mitigations at the gradient gate and adds their penalties to the loss, so they
combine freely. If one of them skips visits as published, the product is scaled up once. The batch mean then becomes the
mean over the samples with a product above 0. A weight of 0 removes a sample from the mini-batch exactly. No batch,
backward pass or optimizer step is skipped, so processes stay in step. Weights do not affect penalties.

A mitigation does not depend on a trainer. It states its needs in :meth:`Mitigation.needs`, and its effects on a batch
in :meth:`Mitigation.effects`. A new mitigation changes no other file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.evidence.flags import Flags
from memtrain.models.backbones.base import Backbone
from memtrain.models.observation import Observation
from memtrain.monitoring.host import Host


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The values that a mitigation reads.

    Attributes:
        attention_graph: whether it reads the token attention of every site with its graph.
        base_profile: names of signals whose values under the base model `observation.reference` must hold.
        unconditional: whether it reads `observation.unconditional` in every batch.
        sample_loss: whether it reads each sample's denoising loss when weights are decided.
    """

    attention_graph: bool = False
    base_profile: tuple[str, ...] = ()
    unconditional: bool = False
    sample_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Effects:
    """The effects of a mitigation on batches that other parts of a run must know.

    Attributes:
        edits_training: whether its hooks change the network in forwards with gradients but not in forwards without
            gradients.
        skips: whether its weights are 0 and 1, and the batch mean must become the mean over kept samples.
        changes_batch: whether `prepare` changes the batch, or prepares hooks for its samples, before the forward pass.
        changes_samples: whether `prepare` puts other samples into the batch, so that it is called before other
            mitigations.
        changes_captions: whether a visit may train on another text than the sample's caption.
        reads_captions: whether its readings are right only under the sample's own caption.
        flagged_only: whether it acts only on flagged samples in the batch.
    """

    edits_training: bool = False
    skips: bool = False
    changes_batch: bool = False
    changes_samples: bool = False
    changes_captions: bool = False
    reads_captions: bool = False
    flagged_only: bool = False


class Mitigation:
    """Base of the mitigations; a subclass overrides `prepare`, `weights`, `penalty` or other methods as needed."""

    def needs(self) -> Needs:
        """Return the needs of the rule; by default it needs the flags only."""
        return Needs()

    def effects(self) -> Effects:
        """Return the effects of the rule; by default it weights flagged and other samples."""
        return Effects()

    # A run

    def open(self, host: Host) -> None:
        """Start without a state, and refuse a host without the needed parts; a saved state is loaded later."""

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: Any) -> None:
        """Add hooks to the denoiser before the probe adds its own; by default there are none.

        Args:
            denoiser: the denoiser as the host calls it, with or without wrapper.
            backbone: the family of the denoiser.
            module: the module that the host trains.
        """

    def detach(self) -> None:
        """Remove the added hooks; called one or more times at every end of training."""

    def finish(self, host: Host) -> None:
        """Write final files after the engine's last update; called on every process."""

    def exporting(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the denoiser has its exported form; by default it is unchanged."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run, in plain types and tensors; by default it is empty."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state."""

    # A batch

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Change the batch in place before the forward pass; by default it stays as it is.

        Random draws must depend only on `number` and the samples' keys or their places in the global batch. The same
        batch is then treated the same on one process and on several, and after a resume.

        Args:
            batch: the batch of the module, on its device. The names of its samples are `flags.keys`.
            flags: the flags, on the host.
            tokenizer: the module's tokenizer, or None.
            number: number of batches since the start of training, the same on every process.
        """

    def penalty(self, observation: Observation, flags: Flags) -> Tensor | None:
        """Return the penalty of each sample, `(B,)` with a graph; its batch mean is added to the loss.

        The default is no penalty. The method is called before the backward pass, so there is no gradient yet.
        """
        return None

    def forward_done(self, host: Host) -> None:
        """Act after the training forward of the batch and before its backward pass; by default nothing is done."""

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return the weight of each sample, `(B,)`, non-negative, on the device of the flags; by default ones.

        The method is called once for a batch, when the loss gradient reaches the denoiser's output or each sample's
        loss is known.
        """
        return torch.ones_like(flags.score)

    def batch_done(self) -> None:
        """Act after the batch; by default nothing is done."""

    def synchronize(self, gather: Callable[[Any], list[Any]]) -> None:
        """Merge the values that the processes have collected since the last call; by default there are none.

        Args:
            gather: function from one picklable value of this process to the values of all processes in the order of
                ranks. Every process must call it equally often.
        """
