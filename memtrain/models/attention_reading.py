"""What the probe reads at one attention site: queries and keys once more, and from them the token attention.

The host's attention kernel is left alone, and so are its random numbers: what is read of a LoRA layer is read without
its dropout. Cost: one query and key projection, and the attention to text tokens; with `text_mass` one more attention,
with `neurons` one more projection of the text.
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
        backbone: the family.
        text_mass: in joint attention, also read the share of attention given to text.
        neurons: also read the activation of the site's value neurons.
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
            name: of the site.
            module: the attention module.
            args: positional arguments of its forward.
            kwargs: keyword arguments of its forward.
            tokens: text tokens T of the denoiser's forward.
            into: gets the readings of this site.
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
    """An adapter's dropout draws nothing here, so that the host later draws what it would without a probe."""
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
    """Autocast keeps no casts of weights made here: made without a graph, they would cost the layer its gradient.

    pytorch/pytorch issue 112583, mended in later releases of torch than the oldest that is supported.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
