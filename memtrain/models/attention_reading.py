"""The probe's reading at one attention site: it computes queries and keys once more, and the token attention from them.

The host's attention kernel and its random numbers do not change: a LoRA layer is read without its dropout. Cost: one
query and key projection, and the attention to text tokens; with `text_mass` one more attention, with `neurons` one more
projection of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from memtrain.functional.attention import text_mass, token_attention
from memtrain.functional.neurons import neuron_activation
from memtrain.models.backbones.base import Backbone
from memtrain.models.observation import Observation


@dataclass(frozen=True)
class AttentionReader:
    """Reads attention sites of one family of denoisers.

    Attributes:
        backbone: the backbone of the family.
        text_mass: whether to also read the share of attention on text, in joint attention.
        neurons: whether to also read the activation of the site's value neurons.
    """

    backbone: Backbone
    text_mass: bool = False
    neurons: bool = False

    def read(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        tokens: int,
        into: Observation,
    ) -> None:
        """Read one site, with a graph if gradients are enabled.

        Args:
            name: the name of the site.
            module: the attention module.
            args: the positional arguments of its forward.
            kwargs: the keyword arguments of its forward.
            tokens: the number T of text tokens in the denoiser's forward.
            into: the observation that gets the readings of this site.
        """
        with without_dropout(module):
            self._read(name, module, args, kwargs, tokens=tokens, into=into)

    def _read(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        tokens: int,
        into: Observation,
    ) -> None:
        projection = self.backbone.project(module, args, kwargs, tokens=tokens)
        into.token_attention[name] = token_attention(projection.query, projection.key, valid=projection.valid)
        if self.neurons:
            values = getattr(module, self.backbone.value_projection(module))
            with torch.no_grad():
                into.neuron_activation[name] = neuron_activation(values(projection.text_states))
        if self.text_mass and projection.joint_key is not None:
            into.text_mass[name] = text_mass(projection.query, projection.joint_key, projection.text)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Let an adapter's dropout draw nothing here, so that the host later draws the same values as without a probe."""
    drawing = [part for part in module.modules() if isinstance(part, _DropoutNd) and part.training and part.p]
    for part in drawing:
        part.training = False
    try:
        yield
    finally:
        for part in drawing:
            part.training = True


@contextmanager
def without_cast_cache() -> Iterator[None]:
    """Let autocast keep no casts of weights from here. Casts without a graph would cost the layer its gradient.

    See pytorch/pytorch issue 112583, which is fixed in later releases of torch than the oldest supported one.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
