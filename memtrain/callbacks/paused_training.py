"""The model of a running training as a pipeline to sample with, in such a way that training does not notice.

Within :func:`paused_training` the module holds its averaged weights with every mitigation's `exporting`, the pipeline
is on the module's device, in evaluation mode, and samples with a copy of its scheduler; a compiled denoiser runs
uncompiled, because images come in other sizes than batches and would be compiled for anew. Afterwards all is as it was:
weights, the mode of each single module, places of the frozen parts, the scheduler, and the random state of Python,
numpy and torch. The probe and mitigations act on forwards with gradients alone, and sampling has none. No weights are
copied but those that an average is exchanged for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from memtrain.errors import ConfigurationError
from memtrain.monitoring.mitigation import Mitigation

OFFERED = ("export_pipeline", "averaged_weights")
"""What a module has to offer."""


def require_exportable(module: Any, callback: str) -> None:
    """Refuse a module that offers no pipeline, before any work is done.

    Raises:
        ConfigurationError: naming what it lacks.
    """
    lacking = [name for name in OFFERED if not hasattr(module, name)]
    if lacking:
        raise ConfigurationError(
            f"{callback} cannot sample with {type(module).__name__}, which has no {' and no '.join(lacking)}",
            expected="a module with export_pipeline() and averaged_weights(), such as TextToImageModule",
            remedy=f"add them to the module, or remove {callback} from the callbacks",
        )


@contextmanager
def paused_training(trainer: Any, module: Any) -> Iterator[Any]:
    """The pipeline as it would be exported now.

    Args:
        trainer: whose callbacks' mitigations are applied as in an export.
        module: with `export_pipeline()` and `averaged_weights()`.
    """
    with ExitStack() as contexts:
        contexts.enter_context(isolate_rng())
        contexts.enter_context(torch.no_grad())
        contexts.enter_context(torch.compiler.set_stance("force_eager"))
        contexts.enter_context(module.averaged_weights())
        for callback in trainer.callbacks:
            if isinstance(callback, Mitigation):
                contexts.enter_context(callback.exporting(module.denoiser))
        pipeline = module.export_pipeline()
        contexts.enter_context(_own_scheduler(pipeline))
        contexts.enter_context(_as_it_was(pipeline, module.device))
        contexts.enter_context(trainer.precision_plugin.forward_context())
        yield pipeline


@contextmanager
def _own_scheduler(pipeline: Any) -> Iterator[None]:
    """Sampling sets timesteps, which training may read from the same object."""
    kept = pipeline.scheduler
    pipeline.scheduler = copy.deepcopy(kept)
    try:
        yield
    finally:
        pipeline.scheduler = kept


@contextmanager
def _as_it_was(pipeline: Any, device: torch.device) -> Iterator[None]:
    """All parts on the device; afterwards where, and in the mode in which, each was."""
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    modes = {module: module.training for part in parts for module in part.modules()}
    places = {part: next((one.device for one in part.parameters()), device) for part in parts}
    try:
        for part, place in places.items():
            if place != device:
                part.to(device)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for part, place in places.items():
            if place != device:
                part.to(place)
