"""Images under masks, and with embeddings of the adversarial search, in units that are kept and shared.

A unit is a batch of prompts under one condition, or the prompts whose embeddings are searched together. The sampling
depends on the masks, which all processes have when every part of the search is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.evaluation.sampling.embedding_samples import sample_embeddings
from memtrain.evaluation.sampling.fitting import rows_with_gradients
from memtrain.evaluation.sampling.generate import sampled_size
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.sampling.stored_samples import identity_of
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.localize.conditions import Conditions
from memtrain.evaluation.stages.parts import Done, Parts, Unit
from memtrain.localization.results import Localization
from memtrain.localization.retrigger import retrigger
from memtrain.models.encoding import encode_prompts
from memtrain.models.neuron_mask import NeuronMask

AT_ONCE = 4
"""Number of prompts whose embeddings are searched together."""


@dataclass(frozen=True)
class Sampled:
    """Images of one condition.

    Attributes:
        name: the name of the condition.
        rows: the rows of the n prompts.
        images: the images, `(n, K, 3, H, W)` uint8.
        losses: the losses of the search for embeddings, `(n, steps)`, if there was a search.
    """

    name: str
    rows: list[int]
    images: Tensor
    losses: Tensor | None


@dataclass
class MaskedSamples:
    """Plan of the images to sample.

    Args:
        pipeline: the model, which is not changed.
        sampling: the settings of the sampling.
    """

    pipeline: StableDiffusionPipeline
    sampling: Sampling
    units: dict[str, Unit] = field(default_factory=dict)
    _conditions: list[tuple[str, list[int], list[str]]] = field(default_factory=list)

    def plain(self, name: str, rows: Sequence[int], texts: Sequence[str], masks: Sequence[NeuronMask | None]) -> None:
        """Sample prompts, each under its mask."""

        def work(part: slice) -> Done:
            embeddings = encode_prompts(self.pipeline, list(texts[part]))
            images = sample_embeddings(self.pipeline, embeddings, masks=masks[part], sampling=self.sampling.quiet)
            return Done({"images": images})

        self._add(name, rows, work, at_once=self.sampling.prompts_at_once)

    def searched(
        self,
        name: str,
        rows: Sequence[int],
        texts: Sequence[str],
        masks: Sequence[NeuronMask | None],
        *,
        own: Tensor,
        steps: int,
    ) -> None:
        """Search embeddings that bring images `own` `(n, 3, H, W)` back, and sample with them."""
        fitting = rows_with_gradients(self.pipeline, size=(int(own.shape[-2]), int(own.shape[-1])))

        def work(part: slice) -> Done:
            asked = list(texts[part])
            found = retrigger(self.pipeline, asked, own[part], masks=masks[part], steps=steps, rows_at_once=fitting)
            images = sample_embeddings(self.pipeline, found.embeddings, masks=masks[part], sampling=self.sampling.quiet)
            return Done({"images": images, "losses": found.losses})

        self._add(name, rows, work, at_once=AT_ONCE)

    def _add(self, name: str, rows: Sequence[int], work: Any, *, at_once: int) -> None:
        number = len(self._conditions)
        names = []
        for start in range(0, len(rows), at_once):
            names.append(f"condition-{number:02d}-prompts-{start:06d}")
            self.units[names[-1]] = partial(work, slice(start, start + at_once))
        self._conditions.append((name, list(rows), names))

    def read(self, parts: Parts) -> Iterator[Sampled]:
        """Yield the conditions in the order in which they were added."""
        for name, rows, names in self._conditions:
            found = [parts.read(one).tensors for one in names]
            losses = torch.cat([one["losses"] for one in found]) if "losses" in found[0] else None
            yield Sampled(name, rows, torch.cat([one["images"] for one in found]), losses)


def identity_of_masked(
    given: StageInput, sampling: Sampling, located: Localization, asked: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that the images depend on.

    Args:
        given: the pipeline, the prompts and the own images.
        sampling: the settings of the sampling.
        located: the masks.
        asked: further options, in a form that JSON can hold.
    """
    texts = [prompt.text for prompt in given.prompts]
    masks = [[prompt, mask.factor, sorted(mask.channels.items())] for prompt, mask in located.items()]
    own = b"" if given.own_images is None else given.own_images.contiguous().numpy().tobytes()
    return {
        **identity_of(given.pipeline, texts, sampling, (), size=sampled_size(given.pipeline, sampling)),
        "masks": hashlib.sha256(repr(masks).encode()).hexdigest(),
        "own_images": hashlib.sha256(own).hexdigest(),
        "asked": asked,
    }


def judged(sampled: Sampled, conditions: Conditions, parts: Parts) -> dict[int, Tensor]:
    """Measure the fidelity of a condition's images, and keep it."""

    def fidelity() -> Done:
        found = conditions.fidelity(sampled.rows, sampled.images, searched=sampled.losses is not None)
        return Done({str(row): values for row, values in found.items()})

    name = "fidelity of " + sampled.name
    parts.alone(name, fidelity)
    return {int(row): values for row, values in parts.read(name).tensors.items()}
