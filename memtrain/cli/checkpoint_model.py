"""The model of a Lightning checkpoint of ours: all weights, averaged weights, or adapters on the base that it names.

Checkpoints are read as plain tensors and numbers. Other content of a file is refused, and never run. A checkpoint names
the model that training began with and the options of the adapters. If that model is a single file, its configurations
lie elsewhere, and `config.yaml` of the checkpoint's run folder names the place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.files.yaml_file import read_mapping
from memtrain.models.adapter_file import FILE, load_adapter
from memtrain.models.pipeline import load_pipeline
from memtrain.models.stock_pipeline import denoiser_of
from memtrain.models.weights_file import one_line, refuse_infinite
from memtrain.training.base_model import BaseModel
from memtrain.training.checkpoint_contents import KEY, lora_of
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a :class:`TextToImageModule`.

    Raises:
        ConfigurationError: if it is something else, or more than tensors and numbers.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigurationError(
            f"{path} cannot be read as plain tensors and numbers ({type(error).__name__}: {one_line(error)})",
            expected="a checkpoint of memtrain",
            remedy="check the path; files that need unpickling are not read, because unpickling can run code",
        ) from error
    if not isinstance(state, dict) or KEY not in state or "state_dict" not in state:
        raise ConfigurationError(
            f"{path} does not say which model it is of{_what_it_holds(state)}",
            expected="a checkpoint of TextToImageModule",
            remedy="resume a run of memtrain with --ckpt_path, and it exports a pipeline at its end; for another "
            "program, take the .safetensors file of the same model",
        )
    return state


def _check_state(state: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint that says something else of itself than memtrain does, or whose weights are not finite."""
    description, weights = state[KEY], state["state_dict"]
    wrong = None
    if not isinstance(description, Mapping) or not isinstance(description.get("pretrained"), str):
        wrong = "it names no pretrained model"
    elif not isinstance(description.get("lora"), Mapping | None) or "lora" not in description:
        wrong = f"its options of adapters are {description.get('lora')!r:.60}"
    elif not isinstance(description.get("train_text_encoder"), bool):
        wrong = f"train_text_encoder is {description.get('train_text_encoder')!r:.60}"
    elif not isinstance(weights, Mapping) or not all(isinstance(one, Tensor) for one in weights.values()):
        wrong = "its state_dict holds something else than tensors"
    if wrong is not None:
        raise ConfigurationError(
            f"{where} is no checkpoint of memtrain: {wrong}",
            expected="a checkpoint as memtrain writes it",
            remedy="check the path, or take an earlier checkpoint",
        )
    for name, value in weights.items():
        refuse_infinite(value, f"{where}: {name}")


def _what_it_holds(state: Any) -> str:
    if not isinstance(state, Mapping):
        return f": it holds a {type(state).__name__}"
    names = [str(name) for name in state]
    return f": it holds {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"


def checkpoint_module(
    state: Mapping[str, Any],
    *,
    pretrained: str | None = None,
    config: str | None = None,
    where: str = "The checkpoint",
) -> TextToImageModule:
    """The module that wrote a checkpoint, as it was then.

    Args:
        state: from :func:`read_checkpoint`.
        pretrained: the model that training began with; default the one that the checkpoint names.
        config: the pipeline folder or hub name with the configurations of a single-file model.
        where: the name of the checkpoint, for errors.

    Raises:
        ConfigurationError: if it says something else of itself than memtrain does, or holds NaN or infinity.
    """
    _check_state(state, where)
    description: Mapping[str, Any] = state[KEY]
    module = TextToImageModule(
        BaseModel(path=pretrained or description["pretrained"], config=config),
        lora=_adapters(description),
        ema_decay=0.5 if "ema" in state else None,
        train_text_encoder=description["train_text_encoder"],
    )
    module.on_load_checkpoint(dict(state))
    module.load_state_dict(state["state_dict"], strict=module.strict_loading)
    return module


def _adapters(description: Mapping[str, Any]) -> LoRA | None:
    try:
        return lora_of(description)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The adapter options of the checkpoint do not fit this version: {one_line(error)}",
            expected="a checkpoint that this version of memtrain reads",
            remedy="export it with the version that wrote it (memtrain export)",
        ) from error


def checkpoint_pipeline(path: Path, *, pretrained: str | None = None, config: str | None = None) -> DiffusionPipeline:
    """The pipeline of a checkpoint in float32 on the CPU, with averaged weights if it holds an average.

    Adapters become part of the weights, but those of T-LoRA, whose ranks are masked by timestep while sampling.

    Args:
        path: the file of the checkpoint.
        pretrained: the model that training began with; default the one that the checkpoint names.
        config: the pipeline folder or hub name with the configurations of a single-file model; default the one in the
            run's configuration.

    Raises:
        ConfigurationError: if the file is something else, or the base model under adapters is another one.
    """
    state, config = read_checkpoint(path), config or base_config(path)
    module = checkpoint_module(state, pretrained=pretrained, config=config, where=str(path))
    pretrained = pretrained or str(state[KEY]["pretrained"])
    if module.ema is not None:
        module.ema.copy_to(module.trained())
    if module.lora is None:
        exported: DiffusionPipeline = module.export_pipeline()
        return exported
    with tempfile.TemporaryDirectory() as folder:
        module.save_adapters(Path(folder))
        rule = module.lora.timestep_rank
        del module
        pipeline = load_pipeline(pretrained, config=config)
        load_adapter(pipeline, Path(folder) / FILE, merge=rule is None)
    if rule is not None:
        rule.attach(denoiser_of(pipeline))
    return pipeline


def base_config(path: Path) -> str | None:
    """Where the run of a checkpoint found the configurations of a single-file base model; None where nothing says."""
    for folder in path.absolute().parents[:2]:
        file = folder / "config.yaml"
        if file.is_file():
            given: Any = read_mapping(file)
            try:
                base = given["model"]["init_args"]["pretrained"]
            except (KeyError, TypeError):
                return None
            found = base.get("config") if isinstance(base, dict) else None
            return None if found is None else str(found)
    return None
