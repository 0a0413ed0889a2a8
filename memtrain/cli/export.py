"""`memtrain export --ckpt ... [--output ...]`: a pipeline from any checkpoint of a training run.

A checkpoint of full fine-tuning gives a diffusers pipeline folder; one of a LoRA training gives
`pytorch_lora_weights.safetensors` and, beside it in `pipeline/`, the weights with the adapters merged into them. Both
have the averaged weights if there is an average. The checkpoint names the pretrained model and the options of the
adapters.

Checkpoints are read as plain tensors and numbers; what else is in a file is refused, and never run. The output is whole
or not there. Cannot: apply what a mitigation does to exported weights, which is said; merge adapters of T-LoRA, whose
ranks depend on the timestep, into weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli

from memtrain.cli.checkpoint_model import checkpoint_module, checkpoint_pipeline, read_checkpoint
from memtrain.cli.command_parser import CarefulParser
from memtrain.cli.outcome import end, tell
from memtrain.cli.stopped import stopped_by_signals
from memtrain.cli.writable import require_writable
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.output import careful_output
from memtrain.files.progress import say_aside
from memtrain.files.shown import shown
from memtrain.files.whole import folder_whole

log = logging.getLogger(__name__)

BAKED = ("NeuronMasking", "MemorizationSinks")
"""Mitigations that change the weights which are exported."""


def export(args: Sequence[str]) -> None:
    """`memtrain export ...`.

    Args:
        args: what follows `export`.
    """
    careful_output()
    try:
        with stopped_by_signals(["memtrain", "export", *args], kept="nothing of the export; the checkpoint"):
            auto_cli(
                export_checkpoint,
                args=list(args),
                as_positional=False,
                parser_class=CarefulParser,
                prog="memtrain export",
            )
    except MemtrainError as error:
        end(error)


def export_checkpoint(
    ckpt: str,
    output: str | None = None,
    adapters: Literal["lora", "pipeline", "both"] = "both",
    pretrained: str | None = None,
    pretrained_config: str | None = None,
) -> None:
    """Write the model of a checkpoint in diffusers' format.

    Args:
        ckpt: A .ckpt file of memtrain.
        output: Folder to write to; default `exported/` and the checkpoint's name in the run folder.
        adapters: The output of a LoRA training: the file of adapters, the pipeline with merged adapters, or both.
        pretrained: The model that training began with; default the one that the checkpoint names.
        pretrained_config: The pipeline folder or hub name with the configurations of a single-file model.
    """
    path = Path(ckpt)
    if not path.is_file():
        raise ConfigurationError(
            shown(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}"),
            expected="a .ckpt file of memtrain",
            remedy="such as RUN/checkpoints/last.ckpt",
        )
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    folder = Path(output) if output is not None else run / "exported" / path.stem
    if (folder / "model_index.json").exists() or any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{folder} holds a model already", expected="a new folder", remedy="name another one")
    say_aside(f"Reading {shown(path)}")
    state = read_checkpoint(path)
    require_writable(folder)
    module = checkpoint_module(state, pretrained=pretrained, config=pretrained_config)
    trained = module.lora
    say_aside(f"Writing {shown(folder)}")
    with module.averaged_weights():
        if trained is None:
            with folder_whole(folder) as unfinished:
                module.export_pipeline().save_pretrained(unfinished)
        elif adapters != "pipeline":
            module.save_adapters(folder)
    del module
    if trained is not None and adapters != "lora":
        if trained.timestep_rank is None:
            with folder_whole(folder / "pipeline") as unfinished:
                checkpoint_pipeline(path, pretrained=pretrained, config=pretrained_config).save_pretrained(unfinished)
        else:
            log.warning("Adapters of T-LoRA are not merged: their ranks depend on the timestep")
    for name in BAKED:
        if any(name in callback for callback in state.get("callbacks", {})):
            log.warning(
                "The exported weights lack the mask of %s (%s): apply the mask in the run folder with "
                "memtrain.models.neuron_mask.NeuronMask",
                name,
                folder,
            )
    tell({"checkpoint": str(path), "step": state.get("global_step")}, folder)
    print(shown(f"{path} (step {state.get('global_step')}) is exported: {folder}", most=2000))
