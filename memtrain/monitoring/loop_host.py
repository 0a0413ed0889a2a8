"""A hand-written loop as the surroundings of the engine: plain PyTorch, accelerate, Fabric.

An accelerator is known by what it has, so neither accelerate nor Lightning is imported. Optimizer steps are counted by
torch's own hook, for optimizers that hold parameters of the denoiser; a step that a gradient scaler leaves out is none.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from memtrain.monitoring.host import Host

log = logging.getLogger(__name__)


class LoopModule(nn.Module):
    """What is trained, as the engine and the mitigations look at it.

    Args:
        denoiser: as the loop calls it.
        offers: `sample_loss`, `unconditional_text`, `tokenizer`; None where the loop has none.
    """

    current_epoch = 0
    global_rank = 0

    def __init__(self, denoiser: nn.Module, **offers: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        for name, value in offers.items():
            if value is not None:
                # Past nn.Module, which would take a text encoder for a part of this one.
                object.__setattr__(self, name, value)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device


class LoopHost(Host):
    """A loop.

    Args:
        module: what it trains.
        accelerator: accelerate's `Accelerator`, or a Fabric; None in a plain loop.
        data: as in :mod:`memtrain.monitoring.data_protocol`.
        folder: of the run.
    """

    def __init__(self, module: LoopModule, *, accelerator: Any = None, data: Any = None, folder: str | Path) -> None:
        super().__init__(module, data=data, folder=folder)
        self.accelerator = accelerator
        self.scale: Callable[[], float | Tensor] | None = None
        self._steps = 0
        self._trains: dict[int, bool] = {}
        self._counting: Any = None
        module.global_rank = self.rank
        # Diffusers' scripts save on the first process only.
        self.saves_alone = self.world_size > 1

    def announce(self, heldout_share: float) -> None:
        """Say once what the loop does not train on."""
        if heldout_share and self.rank == 0:
            log.warning(
                "%g %% of the samples are held out by weight, and teach nothing: they tell how other samples score "
                "(heldout_share=0 trains on all)",
                100 * heldout_share,
            )

    # What counts optimizer steps

    def count_steps(self) -> None:
        """Begin to count."""
        self._counting = register_optimizer_step_post_hook(self._stepped)

    def stop(self) -> None:
        """Count no more; harmless when done before."""
        if self._counting is not None:
            self._counting.remove()
            self._counting = None

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        known = self._trains.get(id(optimizer))
        if known is None:
            own = {id(value) for value in self.module.parameters()}
            known = any(id(value) in own for group in optimizer.param_groups for value in group["params"])
            # The first of several: they step together.
            known = known and not any(self._trains.values())
            self._trains[id(optimizer)] = known
        self._steps += known

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._steps

    @step.setter
    def step(self, value: int) -> None:
        self._steps = value

    @property
    def epoch(self) -> int:
        """What the loop says."""
        return int(self.module.current_epoch)

    @property
    def restored(self) -> bool:
        """The weights of the beginning are those at which the guard was made, whatever was loaded since."""
        return True

    @property
    def loss_scale(self) -> float | Tensor:
        """What the loop says, else the accelerator's scaler over the batches that it accumulates."""
        if self.scale is not None:
            return self.scale()
        return _scale(self.accelerator) / int(getattr(self.accelerator, "gradient_accumulation_steps", 1))

    @contextmanager
    def _forward(self) -> Iterator[None]:
        device = self.device
        # An adapter's dropout must not draw from what the loop draws from.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            autocast = getattr(self.accelerator, "autocast", None)
            if autocast is None:
                yield
                return
            with autocast():
                yield

    def forward_context(self) -> AbstractContextManager[Any]:
        """The accelerator's precision."""
        return self._forward()

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Fabric's wrapper refuses any gradient outside of `fabric.backward`; these are none of its business."""
        wrapped = next((part for part in self.module.modules() if hasattr(part, "_forward_module")), None)
        wrappers: Any = None if wrapped is None else sys.modules.get(type(wrapped).__module__)
        if wrappers is None or not hasattr(wrappers, "_in_fabric_backward"):
            yield
            return
        before, wrappers._in_fabric_backward = wrappers._in_fabric_backward, True
        try:
            yield
        finally:
            wrappers._in_fabric_backward = before

    def moved(self, batch: Any) -> Any:
        """A batch on the device."""
        if isinstance(batch, Tensor):
            return batch.to(self.device)
        if isinstance(batch, dict):
            return {name: self.moved(part) for name, part in batch.items()}
        return batch


def _scale(accelerator: Any) -> float | Tensor:
    """The gradient scaler's factor; a tensor where it is on the device, so that nothing waits for its value."""
    precision = getattr(getattr(accelerator, "strategy", None), "precision", None)
    scaler = getattr(accelerator, "scaler", None) or getattr(precision, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale
