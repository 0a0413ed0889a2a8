"""The model that an evaluation looks at: a pipeline, a pipeline with a LoRA file, a checkpoint, or what a run trained.

A run of adapters left their file and, merged with them, a pipeline. That pipeline is taken, unless there is none, or
T-LoRA was trained, whose ranks have to be masked by timestep while sampling: then the base model and the file are.

Precision: `auto` is float32 on a CPU and half precision on a GPU, of U-Nets float16, in which published work on
memorization samples, and of transformers bfloat16, because some of them overflow in float16. Adapters and averages are
made part of the weights in float32 and then rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from memtrain.cli.checkpoint_model import checkpoint_pipeline, read_checkpoint
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Precision
from memtrain.files.shipped import at_hand
from memtrain.files.yaml_file import read_mapping
from memtrain.models.adapter_file import FILE, adapter_contents, adapter_path, load_adapter
from memtrain.models.pipeline import load_pipeline
from memtrain.models.pretrained import WHOLE, check_file, check_folder, is_single_file
from memtrain.models.single_file import checkpoint_kind
from memtrain.models.stock_pipeline import denoiser_of
from memtrain.training.base_model import BaseModel, base_model
from memtrain.training.timestep_lora import TimestepRank

CHECKPOINT = ".ckpt"
"""Suffix of Lightning's checkpoints."""


@dataclass(frozen=True)
class TrainedPipeline:
    """Where a model comes from.

    Attributes:
        model: a pipeline folder, single-file checkpoint or hub name, or a `.ckpt` of a training run.
        lora: file of adapters that are added to it.
        scale: the factor of the adapters.
        config: the place of the configurations and tokenizers of a single-file checkpoint.
        precision: the number format of the model.
    """

    model: str
    lora: Path | None = None
    scale: float = 1.0
    config: str | None = None
    precision: Precision = "auto"

    @property
    def name(self) -> str:
        """For the results."""
        scaled = f" at scale {self.scale:g}" if self.scale != 1 else ""
        added = "" if self.lora is None else f" with {self.lora}{scaled}"
        rounded = "" if self.precision in ("auto", "float32") else f" in {self.precision}"
        return self.model + added + rounded

    def load(self) -> DiffusionPipeline:
        """The pipeline, on the CPU.

        Raises:
            ConfigurationError: if it cannot be loaded, or the adapters do not fit.
        """
        if is_checkpoint(self.model):
            pipeline = checkpoint_pipeline(Path(self.model))
            return in_type(pipeline, type_of(self.precision, transformer=hasattr(pipeline, "transformer")))
        rounded = self.precision != "float32" and (self.precision != "auto" or torch.cuda.is_available())
        if rounded and self.lora is None and not is_single_file(self.model):
            # Read as it is computed with, so that a large model is never held in float32.
            dtype = type_of(self.precision, transformer=_has_transformer(self.model))
            return load_pipeline(self.model, dtypes={"default": dtype})
        pipeline = load_pipeline(self.model, config=self.config)
        if self.lora is not None:
            rule = TimestepRank.of(adapter_contents(self.lora)[1])
            load_adapter(pipeline, self.lora, scale=self.scale, merge=rule is None)
            if rule is not None:
                rule.attach(denoiser_of(pipeline))
        return in_type(pipeline, type_of(self.precision, transformer=hasattr(pipeline, "transformer")))


def type_of(precision: Precision, *, transformer: bool) -> torch.dtype:
    """The type of numbers that is meant, on the device of this process.

    Args:
        precision: as the option has it.
        transformer: whether the denoiser is one, which decides between both kinds of half precision.
    """
    if precision != "auto":
        named: torch.dtype = getattr(torch, precision)
        return named
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if transformer else torch.float16


def in_type(pipeline: DiffusionPipeline, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline in float32 with its weights in `dtype`, but for layers that overflow in float16 by their class."""
    if dtype == torch.float32:
        return pipeline
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to(dtype)
            wide: Any = getattr(part, "_keep_in_fp32_modules", None) or ()
            for name, layer in part.named_modules() if dtype == torch.float16 else ():
                if set(name.split(".")) & set(wide):
                    layer.float()
    return pipeline


def _has_transformer(model: str) -> bool:
    """Whether the denoiser of a pipeline folder or hub name is a transformer; what cannot be read is found later."""
    try:
        return "transformer" in DiffusionPipeline.load_config(at_hand(model))
    except (OSError, ValueError):
        return False


def trained(
    model: str, lora: str | Path | None = None, *, scale: float = 1.0, precision: Precision = "auto"
) -> TrainedPipeline:
    """The model that a command names, looked at as far as can be without its weights.

    Args:
        model: a `.ckpt` of a training run, a pipeline folder (also with weights of the variant `fp16` alone), a
            single-file checkpoint (.safetensors), or a hub name.
        lora: a file of adapters, or a folder that holds one.
        scale: the factor of the adapters.
        precision: the number format of the model.

    Raises:
        ConfigurationError: if it is something else, saying what was found.
    """
    path = Path(at_hand(model))
    if is_checkpoint(model):
        if not path.is_file():
            raise ConfigurationError(
                f"There is no checkpoint {path}", expected="a .ckpt file of memtrain", remedy="check the path"
            )
        read_checkpoint(path)
        if lora is not None:
            raise ConfigurationError(
                f"lora={str(lora)!r} beside the checkpoint {path}, which holds trained weights and names its base",
                expected="one of the two",
                remedy="for other adapters name the base model with --model",
            )
    elif (path / "config.yaml").is_file() and not (path / "model_index.json").is_file():
        raise ConfigurationError(
            f"{path} is the folder of a training run",
            expected=WHOLE,
            remedy=f"name it with --run {path}, without --model",
        )
    elif path.is_dir():
        check_folder(path)
    elif is_single_file(model):
        check_file(path)
        checkpoint_kind(path)
    return TrainedPipeline(model, adapter_path(lora) if lora is not None else None, scale, precision=precision)


def is_checkpoint(model: str) -> bool:
    """Whether a model is named that is, or would be, a Lightning checkpoint."""
    return Path(model).suffix == CHECKPOINT


def of_run(run: Path, *, precision: Precision = "auto") -> TrainedPipeline:
    """The trained model of a run.

    Raises:
        ConfigurationError: if it left nothing.
    """
    file, pipeline = run / FILE, run / "pipeline"
    whole = (pipeline / "model_index.json").is_file()
    masked = file.is_file() and TimestepRank.of(adapter_contents(file)[1]) is not None
    if whole and not masked:
        return TrainedPipeline(str(pipeline), precision=precision)
    if not file.is_file():
        raise ConfigurationError(
            f"{run} holds no trained pipeline",
            expected=f"pipeline/, or {FILE} beside the run's config.yaml",
            remedy="let the training end, or name one of its checkpoints with --model",
        )
    config: Any = read_mapping(run / "config.yaml")
    pretrained = config["model"]["init_args"]["pretrained"]
    given = base_model(BaseModel(**pretrained) if isinstance(pretrained, dict) else str(pretrained))
    return TrainedPipeline(given.path, adapter_path(file), config=given.config, precision=precision)
