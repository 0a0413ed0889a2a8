"""Storage of a frozen denoiser's weights in 4 or 8 bits, while its adapters are trained.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.

| kind | weights | needs |
|---|---|---|
| `bitsandbytes_4bit` | 4-bit NormalFloat in blocks of 64 | bitsandbytes |
| `bitsandbytes_8bit` | 8-bit integers by row, outliers of inputs in half precision | bitsandbytes |
| `torchao_int8` | 8-bit integers by row | torchao |

The linear layers of the blocks are replaced in place. The layers that embed inputs and make the output do not change. A
GPU only ever holds the small weights. Cost: a step takes longer, because weights are widened at each use.
Suggested: `bitsandbytes_4bit` if a model does not fit otherwise. Cannot: be saved as a pipeline. The adapters are
exported instead (`adapters: lora` of PipelineExport).
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from memtrain.errors import ConfigurationError

Quantization = Literal["none", "bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8"]
"""The names of kinds of storage."""


def require_quantizable(kind: Quantization, *, adapters: bool) -> None:
    """Refuse impossible kinds of storage before anything is loaded.

    Args:
        kind: the kind of storage.
        adapters: whether adapters are trained and the weights are frozen.

    Raises:
        ConfigurationError: if a package is missing, or if the weights themselves are trained.
    """
    if kind == "none":
        return
    if not adapters:
        raise ConfigurationError(
            f"execution.quantize={kind!r} without adapters: weights of 8 bits or less cannot be trained",
            expected="`lora`, whose base is frozen",
            remedy="add `lora: {rank: 16}`, or remove execution.quantize",
        )
    package = kind.partition("_")[0]
    if find_spec(package) is None:
        raise ConfigurationError(
            f"execution.quantize={kind!r} needs {package}, which is not installed",
            expected=f"the package {package}",
            remedy=f"pip install {package}, or remove execution.quantize (frozen_dtype: bfloat16 halves the base)",
        )


def quantize(denoiser: Any, kind: Quantization, *, dtype: torch.dtype) -> None:
    """Replace the linear layers of a denoiser's blocks, in place.

    Args:
        denoiser: the frozen denoiser, before adapters are added.
        kind: the kind of storage.
        dtype: the type in which layers compute.
    """
    if kind == "none":
        return
    inside = {name: layer for name, layer in denoiser.named_modules() if _is_of_block(name, layer)}
    if kind == "torchao_int8":
        _by_torchao(inside)
        return
    for name, layer in inside.items():
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, _by_bitsandbytes(layer, kind, dtype))
    # peft chooses the layers for adapters of such weights by these attributes.
    setattr(denoiser, "is_loaded_in_4bit" if kind == "bitsandbytes_4bit" else "is_loaded_in_8bit", True)


def _is_of_block(name: str, layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and any(part.isdigit() for part in name.split("."))


def _by_torchao(layers: dict[str, nn.Module]) -> None:
    with warnings.catch_warnings():
        # Hide torchao's warnings of parts of itself that are not used here.
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        for layer in layers.values():
            quantize_(layer, Int8WeightOnlyConfig())
            layer.requires_grad_(False)


def _by_bitsandbytes(layer: Any, kind: Quantization, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes

    shape: dict[str, Any] = {"bias": layer.bias is not None}
    weight = layer.weight.detach()
    made: Any
    if kind == "bitsandbytes_4bit":
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=dtype, quant_type="nf4", **shape
        )
        made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, has_fp16_weights=False, threshold=6.0, **shape
        )
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    # This call makes the weights small, on any device.
    return made.to(weight.device).requires_grad_(False)
