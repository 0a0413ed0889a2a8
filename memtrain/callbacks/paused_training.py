"""The model of a running training as a pipeline for sampling, without any effect on the training.

Within :func:`paused_training` the module holds its averaged weights with every mitigation's `exporting`. The pipeline
is on the module's device and in evaluation mode, and it samples with a copy of its scheduler. A compiled denoiser runs
uncompiled, because image sizes differ from batch sizes and would need another compilation. Afterwards the former state
returns. This includes the weights, the mode of each module, the devices of the frozen parts, the scheduler, and the
random state of Python, numpy and torch. The probe and the mitigations act on forwards with gradients only, and sampling
has no gradients. Only the weights that an average replaces are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from memtrain.errors import ConfigurationError
from memtrain.models.stock_pipeline import denoiser_of
from memtrain.monitoring.mitigation import Mitigation

OFFERED = ("export_pipeline", "averaged_weights")
"""Methods that a module must have."""


def require_exportable(module: Any, callback: str) -> None:
    """Refuse a module without a pipeline, before any work is done.

    Raises:
        ConfigurationError: if the module lacks a method, which the error names.
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
    """Provide the pipeline as an export would write it now.

    Args:
        trainer: the trainer, whose mitigations act as in an export.
        module: a module with `export_pipeline()` and `averaged_weights()`.
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
        contexts.enter_context(_own_type(pipeline))
        yield pipeline


@contextmanager
def _own_scheduler(pipeline: Any) -> Iterator[None]:
    """Use a copy of the scheduler, because sampling sets timesteps that training may read from the same object."""
    kept = pipeline.scheduler
    pipeline.scheduler = copy.deepcopy(kept)
    try:
        yield
    finally:
        pipeline.scheduler = kept


@contextmanager
def _own_type(pipeline: Any) -> Iterator[None]:
    """Cast the denoiser's inputs to its type, as in training, if the frozen parts have another type."""
    denoiser = denoiser_of(pipeline)
    types = {weight.dtype for weight in denoiser.parameters() if weight.is_floating_point()}

    def cast(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        (own,) = types
        made: tuple[Any, Any] = tree_map_only(
            Tensor, lambda value: value.to(own) if value.is_floating_point() else value, (args, kwargs)
        )
        return made

    if len(types) > 1 or torch.is_autocast_enabled(next(denoiser.parameters()).device.type):
        yield
        return
    handle = denoiser.register_forward_pre_hook(cast, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _as_it_was(pipeline: Any, device: torch.device) -> Iterator[None]:
    """Move all parts to the device, and restore the former device and mode of each part afterwards."""
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    modes = {module: module.training for part in parts for module in part.modules()}
    places = {part: next((one.device for one in part.parameters()), device) for part in parts}
    # The images are decoded one by one, because a large batch may not fit next to the state of training.
    sliced = {part: part.use_slicing for part in parts if hasattr(part, "use_slicing")}
    try:
        for vae in sliced:
            vae.use_slicing = True  # type: ignore[assignment]
        for part, place in places.items():
            if place != device:
                part.to(device)
        yield
    finally:
        for vae, before in sliced.items():
            vae.use_slicing = before
        for module, mode in modes.items():
            module.training = mode
        for part, place in places.items():
            if place != device:
                part.to(place)
