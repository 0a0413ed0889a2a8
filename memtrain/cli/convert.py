"""`python train.py convert --checkpoint ... --output ...`: the model of a checkpoint in diffusers' format.

A checkpoint of a LoRA training gives `pytorch_lora_weights.safetensors`, one of full fine-tuning a pipeline
folder, each with the averaged weights if there is an average. The checkpoint names the pretrained model and the options
of the adapters.

Checkpoints are read as plain tensors and numbers; what else is in a file is refused, and never run. Cannot: apply what
a mitigation does to exported weights, which is said.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from memtrain.cli.writable import require_writable
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.training.base_model import BaseModel
from memtrain.training.checkpoint_contents import KEY, lora_of
from memtrain.training.text_to_image import TextToImageModule

log = logging.getLogger(__name__)

BAKED = ("NeuronMasking", "MemorizationSinks")
"""Mitigations that change the weights which are exported."""


def convert(args: Sequence[str]) -> None:
    """`python train.py convert ...`.

    Args:
        args: what follows `convert`.
    """
    try:
        auto_cli(convert_checkpoint, args=list(args), as_positional=False, prog="train.py convert")
    except MemtrainError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def convert_checkpoint(
    checkpoint: str, output: str, pretrained: str | None = None, pretrained_config: str | None = None
) -> None:
    """Write the model of a checkpoint in diffusers' format: the adapters of a LoRA training, else the pipeline.

    Args:
        checkpoint: A .ckpt file of train.py.
        output: Folder to write to.
        pretrained: The model that training began with; default the one that the checkpoint names.
        pretrained_config: Of a single-file model, a pipeline folder or hub name with its configurations.
    """
    path, folder = Path(checkpoint), Path(output)
    if (folder / "model_index.json").exists() or any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{folder} holds a model already", expected="a new folder", remedy="name another one")
    state = read_checkpoint(path)
    description: Mapping[str, Any] = state[KEY]
    require_writable(folder)
    module = TextToImageModule(
        BaseModel(path=pretrained or description["pretrained"], config=pretrained_config),
        lora=lora_of(description),
        ema_decay=0.5 if "ema" in state else None,
        train_text_encoder=description["train_text_encoder"],
    )
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"], strict=module.strict_loading)
    with module.averaged_weights():
        if module.lora is not None:
            module.save_adapters(folder)
        else:
            module.export_pipeline().save_pretrained(folder)
    for name in BAKED:
        if any(name in callback for callback in state.get("callbacks", {})):
            log.warning(
                "What %s does to exported weights is not in %s: apply the mask in the run folder with "
                "memtrain.models.neuron_mask.NeuronMask",
                name,
                folder,
            )
    print(f"{path} (step {state.get('global_step')}) is converted: {folder}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a :class:`TextToImageModule`.

    Raises:
        ConfigurationError: if it is something else, or more than tensors and numbers.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigurationError(
            f"{path} cannot be read as plain tensors and numbers: {type(error).__name__}: {str(error).splitlines()[0]}",
            expected="a checkpoint of train.py",
            remedy="check the path; files that would have to be unpickled are not read, because that can run code",
        ) from error
    if not isinstance(state, dict) or KEY not in state or "state_dict" not in state:
        raise ConfigurationError(
            f"{path} does not say which model it is of",
            expected="a checkpoint of TextToImageModule",
            remedy="resume the run with --ckpt_path, which exports a pipeline when it ends",
        )
    return state
