"""Shared stages: the part of a denoiser before a difference is computed once for many masks on the same inputs.

A row of a batch is one mask on one seed. Up to the first layer in which two masks differ, their activations for a seed
are equal. So each stage (a residual block, a transformer) runs once per seed and distinct mask of the layers up to it,
and all rows that share its output get it. The output for one mask is also kept for the next batch: first for the
unmasked denoiser, then for the last batch in which all rows shared it.

The module replaces `forward` on the instances of the stages within a context. The stages have to be called once per
forward, in a fixed order, with tensors whose first axis is the batch. This holds for UNets and for transformers with
cross-attention. Cost: the outputs of the shared stages for one mask stay in memory.
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
"""Names of modules that are called one after the other."""

Row = tuple[Mask, int]
"""A mask and a seed."""


class SharedPrefix:
    """Runs stages once per seed and distinct mask prefix.

    Args:
        denoiser: the unwrapped denoiser.
        sites: the names of the masked layers, in the order of a mask's layer numbers.

    Attributes:
        computing: the places in the batch that are currently computed; None for all.
    """

    def __init__(self, denoiser: nn.Module, sites: Sequence[str]) -> None:
        self.computing: Tensor | None = None
        self._modules = {name: module for name, module in denoiser.named_modules() if STAGE.fullmatch(name)}
        self._sites = list(sites)
        self._layers: dict[str, frozenset[int]] = {}
        self._rows: Sequence[Row] = ()
        self._kept: dict[str, tuple[Mask, dict[int, Any]]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the stages and their order from one unmasked forward on seeds 0, 1, ... within the context."""
        called: list[str] = []
        self._kept = {}

        def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def after(module: nn.Module, args: Any, output: Any) -> None:
                called.append(name)
                count = len(args[0])
                self._kept[name] = (frozenset(), {seed: _take(output, [seed], count) for seed in range(count)})

            return after

        handles = [module.register_forward_hook(note(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        passed: set[int] = set()
        self._layers = {}
        for name in called:
            if len(passed) == len(self._sites):
                break
            passed |= {layer for layer, site in enumerate(self._sites) if site.startswith(f"{name}.")}
            if called.count(name) == 1:
                self._layers[name] = frozenset(passed)
        self._kept = {name: kept for name, kept in self._kept.items() if name in self._layers}

    @contextmanager
    def sharing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Share stages between the rows of a forward's batch, within the context."""
        self._rows = rows
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
            self.computing = None

    def _shared(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        layers = self._layers[name]

        def run(*args: Any, **kwargs: Any) -> Any:
            wanted = [(frozenset(pair for pair in mask if pair[0] in layers), seed) for mask, seed in self._rows]
            kept_mask, kept = self._kept.get(name, (None, {}))
            outputs = {(kept_mask, seed): output for seed, output in kept.items()}
            missing = {row: place for place, row in reversed(list(enumerate(wanted))) if row not in outputs}
            full, places = len(wanted), list(missing.values())
            alone = len(missing) == full
            if alone:
                computed = forward(*args, **kwargs)
            elif missing:
                self.computing = torch.tensor(places)
                picked = tree_map(lambda leaf: _take(leaf, places, full), (args, kwargs))
                computed = forward(*picked[0], **picked[1])
                self.computing = None
            for number, (row, place) in enumerate(missing.items()):
                outputs[row] = _take(computed, [place if alone else number], len(places))
            prefixes = {prefix for prefix, _ in wanted}
            if len(prefixes) == 1 and missing:
                prefix = prefixes.pop()
                self._kept[name] = (prefix, {row[1]: output for row, output in outputs.items() if row[0] == prefix})
            if alone:
                return computed
            return tree_map(lambda *leaves: _join(leaves), *(outputs[row] for row in wanted))

        return run


def _take(leaf: Any, places: Sequence[int], full: int) -> Any:
    """Take these rows of every tensor of a batch of `full` rows."""
    if isinstance(leaf, (tuple, list)):
        return type(leaf)(_take(part, places, full) for part in leaf)
    if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != full:
        return leaf
    if len(places) == 1:
        return leaf[places[0] : places[0] + 1]
    return leaf[torch.tensor(places, device=leaf.device)]


def _join(leaves: Sequence[Any]) -> Any:
    return torch.cat(list(leaves)) if isinstance(leaves[0], Tensor) else leaves[0]
