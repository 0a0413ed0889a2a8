"""Store the weights of a frozen denoiser in 4 or 8 bits, while adapters of it are trained.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.

| kind | weights | needs |
|---|---|---|
| `bitsandbytes_4bit` | 4-bit NormalFloat in blocks of 64 | bitsandbytes |
| `bitsandbytes_8bit` | 8-bit integers by row, outliers of inputs in half precision | bitsandbytes |
| `torchao_int8` | 8-bit integers by row | torchao |

The linear layers of the blocks are exchanged where the model lies; what embeds inputs and makes the output stays as it
is. On a GPU only the small weights are ever held. Cost: a step takes longer, because weights are widened at each use.
Suggested: `bitsandbytes_4bit` where a model does not fit otherwise. Cannot: be saved as a pipeline; what is exported
are the adapters (`adapters: lora` of PipelineExport).
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from memtrain.errors import ConfigurationError

Quantization = Literal["none", "bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8"]
"""By name, how weights are stored."""


def require_quantizable(kind: Quantization, *, adapters: bool) -> None:
    """Refuse, before anything is loaded, what cannot be done.

    Args:
        kind: of the weights.
        adapters: whether adapters are trained, and the weights frozen.

    Raises:
        ConfigurationError: if a package is missing, or the weights themselves are trained.
    """
    if kind == "none":
        return
    if not adapters:
        raise ConfigurationError(
            f"execution.quantize={kind!r} without adapters: weights of 8 bits or less cannot be trained",
            expected="`lora`, whose base is frozen",
            remedy="add `lora: {rank: 16}`, or leave quantize out",
        )
    package = kind.partition("_")[0]
    if find_spec(package) is None:
        raise ConfigurationError(
            f"execution.quantize={kind!r} needs {package}, which is not installed",
            expected=f"the package {package}",
            remedy=f"pip install {package}, or leave quantize out (frozen_dtype: bfloat16 halves the base)",
        )


def quantize(denoiser: Any, kind: Quantization, *, dtype: torch.dtype) -> None:
    """Exchange the linear layers of a denoiser's blocks, in place.

    Args:
        denoiser: frozen, before adapters are in it.
        kind: of the weights.
        dtype: in which layers compute.
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
    # By these peft chooses the layers that adapt such weights.
    setattr(denoiser, "is_loaded_in_4bit" if kind == "bitsandbytes_4bit" else "is_loaded_in_8bit", True)


def _is_of_block(name: str, layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and any(part.isdigit() for part in name.split("."))


def _by_torchao(layers: dict[str, nn.Module]) -> None:
    with warnings.catch_warnings():
        # What torchao says of parts of itself that are not used here.
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
    # The weights are made small by this call, wherever they go.
    return made.to(weight.device).requires_grad_(False)
