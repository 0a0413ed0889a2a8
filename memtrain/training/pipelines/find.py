"""Loading of the pipeline to train, with the class of its family."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from memtrain.errors import ConfigurationError
from memtrain.models.pipeline import load_pipeline
from memtrain.models.quiet_loading import quiet_loading
from memtrain.training.base_model import BaseModel, base_model
from memtrain.training.pipelines.base import TrainablePipeline


def families() -> list[type[TrainablePipeline]]:
    """Return every family, found by walking this package."""
    package = importlib.import_module(__package__ or "memtrain.training.pipelines")
    for entry in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{entry.name}")
    return sorted(_concrete(TrainablePipeline), key=lambda kind: kind.__name__)


def _concrete(kind: type[Any]) -> Iterator[type[TrainablePipeline]]:
    for child in kind.__subclasses__():
        if not inspect.isabstract(child):
            yield child
        yield from _concrete(child)


def load_trainable(
    pretrained: str | BaseModel, *, dtypes: Mapping[str, torch.dtype] | None = None
) -> TrainablePipeline:
    """Load a pipeline to train.

    Args:
        pretrained: a diffusers pipeline folder, a single-file checkpoint or a hub name, or a :class:`BaseModel`.
        dtypes: the types of its parts, in the form of :func:`memtrain.models.pipeline.load_pipeline`; None for float32.

    Raises:
        ConfigurationError: if it cannot be loaded, or if no family trains its kind.
    """
    given = base_model(pretrained)
    pipeline = load_pipeline(given.path, config=given.config, dtypes=dtypes)
    name = type(pipeline).__name__
    for family in families():
        if name in family.classes:
            with quiet_loading():
                return family(pipeline, max_sequence_length=given.max_sequence_length, guidance=given.guidance)
    known = sorted(name for family in families() for name in family.classes)
    raise ConfigurationError(
        f"{given.path!r} is a {name}, which no family of memtrain.training.pipelines trains",
        expected=f"one of {', '.join(known)}",
        remedy="name another base model; in your own loop, memtrain.guard.Guard watches any denoiser with a backbone "
        "in "
        "memtrain.models.backbones",
    )
