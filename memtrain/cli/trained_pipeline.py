"""The model that an evaluation looks at: a pipeline, a pipeline with a LoRA file, or what a run has trained.

A run of adapters left their file and, merged with them, a pipeline. That pipeline is taken, unless there is none, or
T-LoRA was trained, whose ranks have to be masked by timestep while sampling: then the base model and the file are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.models.adapter_file import FILE, adapter_contents, adapter_path, load_adapter
from memtrain.models.pipeline import load_pipeline
from memtrain.models.stock_pipeline import denoiser_of
from memtrain.training.timestep_lora import TimestepRank


@dataclass(frozen=True)
class TrainedPipeline:
    """Where a model comes from.

    Attributes:
        model: a pipeline folder or hub name.
        lora: file of adapters that are added to it.
        scale: of the adapters.
    """

    model: str
    lora: Path | None = None
    scale: float = 1.0

    @property
    def name(self) -> str:
        """For the results."""
        if self.lora is None:
            return self.model
        return f"{self.model} with {self.lora}" + (f" at scale {self.scale:g}" if self.scale != 1 else "")

    def load(self) -> DiffusionPipeline:
        """The pipeline, on the CPU.

        Raises:
            ConfigurationError: if it cannot be loaded, or the adapters do not fit.
        """
        pipeline = load_pipeline(self.model)
        if self.lora is not None:
            rule = TimestepRank.of(adapter_contents(self.lora)[1])
            load_adapter(pipeline, self.lora, scale=self.scale, merge=rule is None)
            if rule is not None:
                rule.attach(denoiser_of(pipeline))
        return pipeline


def of_run(run: Path) -> TrainedPipeline:
    """What a run has trained.

    Raises:
        ConfigurationError: if it left nothing.
    """
    file, pipeline = run / FILE, run / "pipeline"
    whole = (pipeline / "model_index.json").is_file()
    masked = file.is_file() and TimestepRank.of(adapter_contents(file)[1]) is not None
    if whole and not masked:
        return TrainedPipeline(str(pipeline))
    if not file.is_file():
        raise ConfigurationError(
            f"{run} holds no trained pipeline",
            expected=f"pipeline/, or {FILE} beside the run's config.yaml",
            remedy="let the training run end",
        )
    config: Any = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return TrainedPipeline(str(config["model"]["init_args"]["pretrained"]), adapter_path(file))
