"""The cost of a planned run: memory by simulation, time and memory by a few steps on the real device, and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.cli.plan_run import PlannedRun
from memtrain.models.simulated_memory import empty_like
from memtrain.monitoring.run import WatchedRun
from memtrain.training.memory_estimate import MemoryEstimate, estimate_memory
from memtrain.training.schedule import optimizer_of

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WARM_UP, TIMED = 1, 3
"""Steps on the real device before the clock runs, and while it does."""


class _Seen(Exception):
    """Ends a forward whose arguments are known."""


def latent_shape(run: PlannedRun) -> tuple[int, int, int]:
    """Channels, rows and columns of a sample's latents."""
    config: Any = run.module.vae.config
    side = int(run.data.resolution) // int(run.module.parts.pipeline.vae_scale_factor)
    return int(config.latent_channels), side, side


def denoiser_call(run: PlannedRun) -> Mapping[str, Any]:
    """The arguments with which a training step of one sample calls the denoiser; the denoiser itself is not run."""
    module, seen = run.module, {}

    def keep(denoiser: nn.Module, args: Any, kwargs: Any) -> None:
        seen["args"], seen["kwargs"] = args, kwargs
        raise _Seen

    batch = {**module.tokens([""]), "latents": torch.zeros(1, *latent_shape(run)), "key": ["a"], "caption": [""]}
    handle = module.denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            generator = torch.Generator(module.device).manual_seed(0)
            module.sample_loss(batch, torch.zeros(1, dtype=torch.int64), generator)
    except _Seen:
        pass
    finally:
        handle.remove()
    return {**seen["kwargs"], "args": seen["args"]}


def memory(run: PlannedRun) -> MemoryEstimate:
    """Simulate a step of the run."""
    module, call = run.module, denoiser_call(run)
    frozen = {
        name: part
        for name, part in getattr(run.module.parts.pipeline, "components", {}).items()
        if isinstance(part, nn.Module) and part is not module.denoiser
    }
    # A cache that is filled in training encodes beside it.
    caching = bool(run.caches) and getattr(run.caches.get("on disk"), "fill", "before") == "before"
    size, batch = int(run.data.resolution), int(run.data.batch_size)
    offloaded = getattr(module.execution, "ema_offload", False)
    return estimate_memory(
        module.denoiser,
        lambda: empty_like(call, batch=batch),
        autocast=AUTOCAST.get(str(run.trainer.precision)),
        optimizer=partial(_optimizer, module),
        average=module.ema is not None and not offloaded,
        foreach=run.trainer.strategy.root_device.type == "cuda",
        others=frozen,
        encode=None if caching else lambda parts: _encode(parts["vae"], batch, size),
    )


def _encode(vae: Any, batch: int, size: int) -> None:
    vae.encode(torch.empty(batch, 3, size, size, dtype=next(vae.parameters()).dtype))


def _optimizer(module: Any, parameters: Iterable[nn.Parameter]) -> Optimizer:
    return optimizer_of(list(parameters), module.optimizer_class, learning_rate=module.learning_rate)


def measure(run: PlannedRun) -> dict[str, float]:
    """Seconds of a step, and bytes of the device, from a few steps of the module without callbacks.

    The weights are changed by it: nothing may be trained or exported afterwards.
    """
    module, device = run.module, run.trainer.strategy.root_device
    module.to(device)
    module.on_fit_start()
    loader = run.data.train_dataloader()
    batch = tree_map_only(Tensor, lambda value: value.to(device), next(iter(loader)))
    if run.caches and "latents" not in batch:
        batch["latents"] = module.encode_images(batch["pixel_values"])
    optimizer = _optimizer(module, module.trained())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    precision: Any = run.trainer.precision_plugin
    start = 0.0
    for number in range(WARM_UP + TIMED):
        if number == WARM_UP:
            _wait(device)
            start = time.perf_counter()
        timesteps = torch.randint(module.parts.steps, (len(batch["key"]),), device=device)
        with precision.forward_context():
            loss = module.sample_loss(batch, timesteps, module.step_generator(number)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if module.ema is not None:
            module.ema.step(module.trained())
    _wait(device)
    found = {"seconds_per_batch": (time.perf_counter() - start) / TIMED}
    if device.type == "cuda":
        found["peak"] = float(torch.cuda.max_memory_allocated(device))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def disk(run: PlannedRun) -> dict[str, int]:
    """Bytes that the run will write, by what, and what is free."""
    module, found = run.module, {}
    steps = run.steps or 0
    trained = 4 * sum(one.numel() for one in module.parameters() if one.requires_grad)
    whole = sum(one.numel() * one.element_size() for one in module.parameters())
    # Weights, two moments, and the average.
    each = (trained if getattr(module, "lora", None) is not None else whole) + trained * (2 + (module.ema is not None))
    kept = 0
    for callback in run.callbacks:
        if isinstance(callback, ModelCheckpoint):
            every = int(callback._every_n_train_steps or 0)
            several = (steps // every if every else run.trainer.max_epochs or 1) if callback.save_top_k < 0 else 0
            kept += max(callback.save_top_k, several) + bool(callback.save_last)
    found[f"checkpoints ({kept})"] = each * kept
    if any(isinstance(one, PipelineExport) and one.adapters != "lora" for one in run.callbacks):
        parts = run.module.parts.pipeline.components.values()
        modules = [part for part in parts if isinstance(part, nn.Module)]
        found["exported pipeline"] = sum(one.numel() * one.element_size() for m in modules for one in m.parameters())
    if isinstance(getattr(run.monitor, "engine", None), WatchedRun):
        samples = int(run.data.batch_size) * run.trainer.world_size * run.trainer.accumulate_grad_batches
        # Some ten numbers of each visit, compressed.
        found["records"] = 64 * samples * steps
    found["free"] = shutil.disk_usage(_existing(Path(run.trainer.default_root_dir))).free
    return found


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())
