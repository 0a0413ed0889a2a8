"""Compute the part of a denoiser before a difference once, for many masks on the same inputs.

A batch holds every mask on every seed. Up to the first layer where two masks differ their activations are the same, so
each stage (a residual block, a transformer) runs once per distinct mask of the layers up to it, and its output is
handed to the rows of all masks that share it. A stage that all masks of a batch share is also kept for the next batch.

The stages are taken over by replacing `forward` on their instances for the duration. They have to be called once per
forward, in a fixed order, with tensors whose first axis is the batch; that holds for UNets and for transformers with
cross-attention. Joint attention is left alone. Cost: the outputs of the shared stages for one mask stay in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from memtrain.localization.selection import Mask

STAGE = re.compile(
    r"(?:(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.)?"
    r"(?:resnets|attentions|downsamplers|upsamplers|transformer_blocks)\.\d+"
)
"""Modules that are called one after the other."""


class SharedPrefix:
    """Runs stages once per distinct mask prefix.

    Args:
        denoiser: unwrapped.
        sites: names of the masked layers, by which a mask counts them.

    Attributes:
        rows: `(b,)` rows of the batch that are being computed now; None for all.
    """

    def __init__(self, denoiser: nn.Module, sites: Sequence[str]) -> None:
        self.rows: Tensor | None = None
        self._modules = {name: module for name, module in denoiser.named_modules() if STAGE.fullmatch(name)}
        self._sites = list(sites)
        self._layers: dict[str, frozenset[int]] = {}
        self._masks: Sequence[Mask] = ()
        self._seeds = 0
        self._kept: dict[str, tuple[Mask, Any]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Learn from one forward, within the context, which stages there are and in which order they run."""
        called: list[str] = []

        def note(name: str) -> Callable[..., None]:
            return lambda *_: called.append(name)

        handles = [module.register_forward_pre_hook(note(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        passed: set[int] = set()
        self._layers = {}
        for name in called:
            passed |= {layer for layer, site in enumerate(self._sites) if site.startswith(f"{name}.")}
            if called.count(name) == 1:
                self._layers[name] = frozenset(passed)
            if len(passed) == len(self._sites):
                break

    @contextmanager
    def sharing(self, masks: Sequence[Mask], *, seeds: int) -> Iterator[None]:
        """Within the context a forward holds each of `masks` on each seed, in that order."""
        self._masks, self._seeds = masks, seeds
        before = {name: self._modules[name].__dict__.get("forward") for name in self._layers}
        for name in before:
            self._modules[name].forward = self._shared(name, self._modules[name].forward)
        try:
            yield
        finally:
            for name, forward in before.items():
                del self._modules[name].forward
                if forward is not None:
                    self._modules[name].forward = forward
            self.rows = None

    def forget(self) -> None:
        """Drop what is kept: the inputs are going to be others."""
        self._kept = {}

    def _shared(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        layers = self._layers[name]

        def run(*args: Any, **kwargs: Any) -> Any:
            prefixes = [frozenset(pair for pair in mask if pair[0] in layers) for mask in self._masks]
            distinct = {prefix: number for number, prefix in reversed(list(enumerate(prefixes)))}
            if len(distinct) == len(prefixes) > 1:
                return forward(*args, **kwargs)
            known = self._kept.get(name)
            if len(distinct) == 1 and known is not None and known[0] == prefixes[0]:
                return self._spread(known[1], [0] * len(prefixes))
            order = list(distinct)
            self.rows = torch.cat([torch.arange(self._seeds) + distinct[prefix] * self._seeds for prefix in order])
            full = len(prefixes) * self._seeds
            picked = tree_map(lambda leaf: _pick(leaf, self.rows, full), (args, kwargs))
            output = forward(*picked[0], **picked[1])
            self.rows = None
            if len(distinct) == 1:
                self._kept[name] = (prefixes[0], output)
            return self._spread(output, [order.index(prefix) for prefix in prefixes])

        return run

    def _spread(self, output: Any, places: Sequence[int]) -> Any:
        rows = torch.cat([torch.arange(self._seeds) + place * self._seeds for place in places])
        return tree_map(lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, output)


def _pick(leaf: Any, rows: Tensor | None, full: int) -> Any:
    if rows is None or not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != full:
        return leaf
    return leaf[rows.to(leaf.device)]
