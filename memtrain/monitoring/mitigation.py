"""What a mitigation is: a rule that changes a batch, weights its samples, or adds a penalty to the loss.

The engine multiplies the weights of all mitigations at the gradient gate and adds their penalties to the loss, so they
combine freely. Where one of them skips visits as published, the product is scaled up, once, so that the batch mean
becomes the mean over the samples to which none of all mitigations gives 0. A weight of 0 removes a sample from the
mini-batch exactly; nothing skips a batch, a backward pass or an optimizer step, so processes stay in step. Weights do
not touch penalties.

A mitigation knows no trainer. What it needs, and what it does to a batch, it says when asked (:meth:`Mitigation.needs`,
:meth:`Mitigation.effects`); adding one changes no other file.
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
    """What a mitigation reads.

    Attributes:
        attention_graph: the token attention of every site with its graph.
        base_profile: signals whose values under the base model `observation.reference` has to hold.
        unconditional: `observation.unconditional` in every batch.
        sample_loss: each sample's denoising loss, when weights are decided.
    """

    attention_graph: bool = False
    base_profile: tuple[str, ...] = ()
    unconditional: bool = False
    sample_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What a mitigation does to batches that other parts of a run have to know.

    Attributes:
        edits_training: its hooks make forwards with gradients those of another network than the one that forwards
            without gradients run.
        skips: weights are 0 and 1, and the batch mean has to become the mean over what is kept.
        changes_batch: `prepare` changes the batch, or gets hooks ready for its samples, before the forward pass.
        changes_samples: `prepare` puts other samples into the batch, and is called before that of the others.
        changes_captions: a visit may train on another text than the sample's caption.
        reads_captions: what it takes from a visit is only right under the sample's own caption.
        flagged_only: it does nothing but with flagged samples that are in the batch.
    """

    edits_training: bool = False
    skips: bool = False
    changes_batch: bool = False
    changes_samples: bool = False
    changes_captions: bool = False
    reads_captions: bool = False
    flagged_only: bool = False


class Mitigation:
    """Base of the mitigations; a subclass overrides what it needs of `prepare`, `weights`, `penalty` and the rest."""

    def needs(self) -> Needs:
        """What it reads; default nothing beyond the flags."""
        return Needs()

    def effects(self) -> Effects:
        """What it does to batches; default it weights samples, flagged or not."""
        return Effects()

    # A run

    def open(self, host: Host) -> None:
        """Start anew, and refuse a host that lacks something, before any work is done; a saved state comes later."""

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: Any) -> None:
        """Put own hooks on the denoiser, before the probe puts its; default nothing.

        Args:
            denoiser: as the host calls it, wrapped or not.
            backbone: its family.
            module: what the host trains.
        """

    def detach(self) -> None:
        """Remove own hooks; called once or more when training ends, however it ends."""

    def finish(self, host: Host) -> None:
        """Write what is left in the end, when the engine has made its last update; called on every process."""

    def exporting(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Within this context the denoiser is as it shall be exported; default as it is."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, plain types and tensors; default nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state up again."""

    # A batch

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Change the batch in place before the forward pass; default nothing.

        Whatever is drawn at random has to depend on `number` and the samples' keys, or their places in the global
        batch, alone, so that the same batch is treated alike on one process and on several, and after a resume.

        Args:
            batch: as the module gets it, on its device. The names of its samples are `flags.keys`.
            flags: on the host.
            tokenizer: the module's, or None.
            number: batches since the start of training, the same on every process.
        """

    def penalty(self, observation: Observation, flags: Flags) -> Tensor | None:
        """Penalty of each sample, `(B,)` with a graph, whose batch mean is added to the loss; default none.

        Called before the backward pass: there is no gradient yet.
        """
        return None

    def forward_done(self, host: Host) -> None:
        """The training forward of the batch is over, its backward pass is not; default nothing."""

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Weight of each sample, `(B,)`, non-negative, on the device of the flags; default ones.

        Called once a batch, when the loss gradient reaches the denoiser's output or each sample's loss is known.
        """
        return torch.ones_like(flags.score)

    def batch_done(self) -> None:
        """The batch is over; default nothing."""

    def synchronize(self, gather: Callable[[Any], list[Any]]) -> None:
        """Merge what the processes have collected since the last call; default nothing.

        Args:
            gather: one picklable value of this process to the values of all, in the order of ranks. Every process calls
                it equally often.
        """
