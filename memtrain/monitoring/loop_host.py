"""A hand-written loop as the host of the engine, with plain PyTorch, accelerate or Fabric.

The attributes of an accelerator identify it, so neither accelerate nor Lightning is imported. A hook of torch counts
optimizer steps, for optimizers with parameters of the denoiser. A step that a gradient scaler skips is not counted.
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
    """The trained module in the form for the engine and the mitigations.

    Args:
        denoiser: the denoiser as the loop calls it.
        offers: `sample_loss`, `unconditional_text` and `tokenizer`; None if the loop has none.
    """

    current_epoch = 0
    global_rank = 0

    def __init__(self, denoiser: nn.Module, **offers: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        for name, value in offers.items():
            if value is not None:
                # This bypasses nn.Module, which would treat a text encoder as a part of this module.
                object.__setattr__(self, name, value)

    @property
    def device(self) -> torch.device:
        """The device of the denoiser."""
        return next(self.denoiser.parameters()).device


class LoopHost(Host):
    """A hand-written loop as a host.

    Args:
        module: the trained module.
        accelerator: accelerate's `Accelerator`, or a Fabric; None in a plain loop.
        data: a data object as in :mod:`memtrain.monitoring.data_protocol`.
        folder: the run folder.
    """

    def __init__(self, module: LoopModule, *, accelerator: Any = None, data: Any = None, folder: str | Path) -> None:
        super().__init__(module, data=data, folder=folder)
        self.accelerator = accelerator
        self.scale: Callable[[], float | Tensor] | None = None
        self._steps = 0
        self._trains: dict[int, bool] = {}
        self._counting: Any = None
        module.global_rank = self.rank
        # The scripts of diffusers save on the first process only.
        self.saves_alone = self.world_size > 1

    def announce(self, heldout_share: float) -> None:
        """Log once which share of the samples the loop does not train on."""
        if heldout_share and self.rank == 0:
            log.warning(
                "%g %% of the samples are held out by weight and are not trained on. They calibrate the threshold "
                "(heldout_share=0 trains on all samples)",
                100 * heldout_share,
            )

    # Counting optimizer steps

    def count_steps(self) -> None:
        """Start counting optimizer steps."""
        self._counting = register_optimizer_step_post_hook(self._stepped)

    def stop(self) -> None:
        """Stop counting; a second call does nothing."""
        if self._counting is not None:
            self._counting.remove()
            self._counting = None

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        known = self._trains.get(id(optimizer))
        if known is None:
            own = {id(value) for value in self.module.parameters()}
            known = any(id(value) in own for group in optimizer.param_groups for value in group["params"])
            # The first of several optimizers is counted, because they step together.
            known = known and not any(self._trains.values())
            self._trains[id(optimizer)] = known
        self._steps += known

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        return self._steps

    @step.setter
    def step(self, value: int) -> None:
        self._steps = value

    @property
    def epoch(self) -> int:
        """The epoch that the loop has set."""
        return int(self.module.current_epoch)

    @property
    def restored(self) -> bool:
        """True, so that the weights from before training are always those at the creation of the guard."""
        return True

    @property
    def loss_scale(self) -> float | Tensor:
        """The factor from the loop, or else the accelerator's scaler over the number of accumulated batches."""
        if self.scale is not None:
            return self.scale()
        return _scale(self.accelerator) / int(getattr(self.accelerator, "gradient_accumulation_steps", 1))

    @contextmanager
    def _forward(self) -> Iterator[None]:
        device = self.device
        # The dropout of an adapter must not use random numbers of the loop.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            autocast = getattr(self.accelerator, "autocast", None)
            if autocast is None:
                yield
                return
            with autocast():
                yield

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context with the accelerator's precision."""
        return self._forward()

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Allow gradients outside of `fabric.backward`, which Fabric's wrapper would refuse."""
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
        """Move a batch to the device."""
        if isinstance(batch, Tensor):
            return batch.to(self.device)
        if isinstance(batch, dict):
            return {name: self.moved(part) for name, part in batch.items()}
        return batch


def _scale(accelerator: Any) -> float | Tensor:
    """Return the factor of the gradient scaler, as a tensor if it is on the device, so that nothing waits for it."""
    precision = getattr(getattr(accelerator, "strategy", None), "precision", None)
    scaler = getattr(accelerator, "scaler", None) or getattr(precision, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale
