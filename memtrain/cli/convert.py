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
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from memtrain.cli.checkpoint_model import checkpoint_module, read_checkpoint
from memtrain.cli.command_parser import CarefulParser
from memtrain.cli.writable import require_writable
from memtrain.errors import ConfigurationError, MemtrainError

log = logging.getLogger(__name__)

BAKED = ("NeuronMasking", "MemorizationSinks")
"""Mitigations that change the weights which are exported."""


def convert(args: Sequence[str]) -> None:
    """`python train.py convert ...`.

    Args:
        args: what follows `convert`.
    """
    try:
        auto_cli(
            convert_checkpoint,
            args=list(args),
            as_positional=False,
            parser_class=CarefulParser,
            prog="train.py convert",
        )
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
    require_writable(folder)
    module = checkpoint_module(state, pretrained=pretrained, config=pretrained_config)
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
