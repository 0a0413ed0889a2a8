"""Low-rank adapters in a module: switched off, or merged for a while into the weights that they adapt.

The base model of a LoRA training is the trained module with its adapters switched off. This holds as long as only the
adapters are trained and they changed nothing at first (one of the two factors is zero). Nothing has to be copied for
it.

Source: peft's layers (`peft.tuners.lora.LoraLayer`), into which the methods of diffusers and transformers put adapters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def adapted_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that carry adapters, by name."""
    # Without peft there are none, and importing it would import accelerate.
    peft = sys.modules.get("peft.tuners.lora")
    if peft is None:
        return {}
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, peft.LoraLayer)}


def adapter_parameters(layer: LoraLayer) -> list[nn.Parameter]:
    """Return the parameters of a layer's adapters, without those of the layer below them."""
    module: Any = layer
    return [value for name, value in module.named_parameters() if not name.startswith("base_layer.")]


def can_be_switched_off(module: nn.Module, trained: Iterable[nn.Parameter]) -> bool:
    """Return whether the adapters of `module` change nothing now, and are the only trained parameters.

    Args:
        module: the module without wrappers, before training.
        trained: its trainable parameters.
    """
    layers = adapted_layers(module)
    owned = {id(value) for layer in layers.values() for value in adapter_parameters(layer)}
    return all(id(value) in owned for value in trained) and all(map(_is_no_change, layers.values()))


@contextmanager
def switched_off(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, no adapter of `modules` acts.

    peft's `enable_adapters(False)` would also freeze the parameters, and unfreeze all of them at the end.
    """
    layers: list[Any] = [layer for module in modules for layer in adapted_layers(module).values()]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Within the context, adapters are part of plain layers' weights. Afterwards all weights are restored bit for bit.

    This needs a copy of the adapted weights for that time. Half precision would lose small changes, so merged weights
    are in float32.

    Args:
        module: a diffusers or transformers model, without wrappers.
    """
    layers: dict[str, Any] = dict(adapted_layers(module))
    kept = {name: layer.get_base_layer().weight.data for name, layer in layers.items()}
    # These attributes tell `save_pretrained` that there are adapters.
    marked: Mapping[str, Any] = {
        name: vars(module)[name] for name in ("_hf_peft_config_loaded", "peft_config") if name in vars(module)
    }
    try:
        for name, layer in layers.items():
            layer.get_base_layer().weight.data = kept[name].to(torch.float32, copy=True)
            layer.merge()
            _put(module, name, layer.get_base_layer())
        for name in marked:
            delattr(module, name)
        yield
    finally:
        for name, value in marked.items():
            setattr(module, name, value)
        for name, layer in layers.items():
            _put(module, name, layer)
            # Subtracting the adapter again would leave rounding errors behind.
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = kept[name]


def merge_for_good(module: nn.Module, *, scale: float = 1.0) -> None:
    """Make adapters part of plain layers' weights.

    Args:
        module: a diffusers or transformers model, without wrappers.
        scale: the scale of the adapters; 1 keeps it.
    """
    layers: dict[str, Any] = dict(adapted_layers(module))
    for name, layer in layers.items():
        layer.scale_layer(scale)
        layer.merge()
        _put(module, name, layer.get_base_layer())
    for name in ("_hf_peft_config_loaded", "peft_config"):
        vars(module).pop(name, None)


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


def _is_no_change(layer: Any) -> bool:
    return not layer.merged and all(_adds_nothing(layer, name) for name in layer.active_adapters)


def _adds_nothing(layer: Any, adapter: str) -> bool:
    """Return whether one adapter of a layer changes nothing."""
    if adapter not in layer.lora_A:
        # It is an adapter of an embedding, or there is none of this name.
        return adapter not in layer.lora_embedding_A
    factors: tuple[Any, Any] = layer.lora_A[adapter], layer.lora_B[adapter]
    if getattr(factors[1], "bias", None) is not None or all(bool(factor.weight.any()) for factor in factors):
        return False
    if adapter not in layer.lora_variant:
        return True
    magnitude = getattr(layer, "lora_magnitude_vector", {})
    return adapter in magnitude and _is_own_norm(magnitude[adapter].weight, layer.get_base_layer().weight)


def _is_own_norm(magnitude: Tensor, weight: Tensor) -> bool:
    """Return whether DoRA's magnitudes are the norms of the weight's rows, as at the start."""
    norm = weight.detach().float().flatten(1).norm(dim=1)
    magnitude = magnitude.detach().float().flatten()
    return len(magnitude) == len(norm) and bool(torch.allclose(magnitude, norm, rtol=1e-3))
