"""Loading of a LoRA file into a pipeline: diffusers' format, or kohya's and others that diffusers converts.

A file is refused if it is not a safetensors file (a pickled one could run code). A file that fits no layer of the
pipeline is refused too; diffusers only warns of it. If a part of the file fits, a warning gives the numbers. Adapters
become part of the weights, so that probes, masks and localization see the plain layers that they know, unless a rule
must act on the adapters while sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import nn

from memtrain.errors import ConfigurationError
from memtrain.files.text import json_of
from memtrain.models.adapters import adapted_layers, merge_for_good
from memtrain.models.weights_file import header, one_line, tensors

log = logging.getLogger(__name__)

FILE = "pytorch_lora_weights.safetensors"
"""The name of the file in a folder, as in diffusers."""
OPTIONS = "lora_adapter_metadata"
"""Diffusers' key in a file's metadata for the options of the adapters."""
FIRST_FACTOR = ("lora_A.", "lora_down.", "lora.down.", "lora_linear_layer.down.")
"""Parts of the names of first factors, in the formats that diffusers converts."""


def adapter_path(given: str | Path) -> Path:
    """Return the path of the file itself, or of the file in a folder.

    Raises:
        ConfigurationError: if there is no file, or if it is not a readable safetensors file.
    """
    path = Path(given)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ConfigurationError(
            f"There is no LoRA file {path}",
            expected="a .safetensors file, or a folder that holds " + FILE,
            remedy="check the path",
        )
    names = adapter_contents(path)[0]
    if any("dora_scale" in name for name in names):
        raise ConfigurationError(
            f"{path} holds DoRA magnitudes in kohya's format, which diffusers would silently ignore",
            expected="LoRA, or DoRA in diffusers' format",
            remedy="convert it, or merge it into the model with the program that made it",
        )
    return path


def adapter_contents(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the tensors in a file, and its metadata.

    Raises:
        ConfigurationError: if it is not a safetensors file.
    """
    shapes, metadata = header(path, "adapters")
    return list(shapes), metadata


def load_adapter(pipeline: Any, path: Path, *, scale: float = 1.0, merge: bool = True) -> int:
    """Put the adapters of a file into a pipeline.

    Args:
        pipeline: a pipeline in float32, without adapters.
        path: the path of the file, as :func:`adapter_path` returns it.
        scale: the factor of the adapters' output.
        merge: whether to make them part of the weights; otherwise they stay layers of their own.

    Returns:
        The number of adapted layers.

    Raises:
        ConfigurationError: if the file fits no layer of the pipeline.
    """
    values, metadata = tensors(path, "adapters")
    names = list(values)
    options = json_of(metadata.get(OPTIONS, "{}"), f"{path}: {OPTIONS!r} of its metadata")
    if not isinstance(options, dict):
        raise _unfit(f"{path}: {OPTIONS!r} of its metadata is a {type(options).__name__}, not options of adapters")
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    trainable = [value for part in parts for value in part.parameters() if value.requires_grad]
    try:
        if hasattr(pipeline, "load_lora_weights"):
            pipeline.load_lora_weights(path.parent, weight_name=path.name, use_safetensors=True, local_files_only=True)
        else:
            _load_into(pipeline.transformer, values, options, prefix="transformer.")
    except Exception as error:
        raise _unfit(f"{path} does not fit this {type(pipeline).__name__}: {one_line(error)}") from error
    found = sum(len(adapted_layers(part)) for part in parts)
    stored = sum(any(word in name for word in FIRST_FACTOR) for name in names)
    if not found:
        raise _unfit(f"{path} fits no layer of this {type(pipeline).__name__}: none of its {stored} adapters is in it")
    if found < stored:
        log.warning("%s: only %d of %d adapters fit this %s", path, found, stored, type(pipeline).__name__)
    for part in parts:
        for layer in adapted_layers(part).values() if not merge else ():
            layer.scale_layer(scale)
            # Diffusers leaves dropout on.
            part.eval()
        if merge:
            merge_for_good(part, scale=scale)
    for value in trainable:
        value.requires_grad_(True)
    return found


def _load_into(module: nn.Module, values: Mapping[str, Any], options: dict[str, Any], *, prefix: str) -> None:
    """Load adapters in diffusers' format into a model that diffusers has no loader for: PixArt's."""
    options = {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}
    state = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    layers = sorted({name.partition(".lora_")[0] for name in state})
    if not options and layers:
        rank = state[f"{layers[0]}.lora_A.weight"].shape[0]
        options = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    if layers:
        inject_adapter_in_model(LoraConfig(**options), module)
        set_peft_model_state_dict(module, state)


def _unfit(found: str) -> ConfigurationError:
    return ConfigurationError(
        found,
        expected="adapters of this kind of model",
        remedy="name the base model that they were trained on with --model",
    )
