"""A callback that says how long the steps of a training run take, how much memory it needs, and whether it is sound."""

from __future__ import annotations

import time
from json import dumps
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class StepClock(Callback):
    """Times a run without waiting for the device between steps.

    Args:
        file: JSON file for the figures, written when training ends.
        warmup: steps that are not timed.
    """

    def __init__(self, file: str, warmup: int = 10) -> None:
        self.file, self.warmup = Path(file), warmup
        self._made = self._start = time.perf_counter()
        self._losses: list[Tensor] = []
        self._first = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock after the warm-up."""
        done = len(self._losses)
        if done == 0:
            self._first = time.perf_counter() - self._made
        if done == min(self.warmup, max(trainer.max_steps - 1, 0)):
            synchronise(pl_module.device)
            self._start = time.perf_counter()
            self._timed_from = done

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss."""
        self._losses.append(outputs["loss"].detach())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures."""
        synchronise(pl_module.device)
        seconds, losses = time.perf_counter() - self._start, torch.stack(self._losses).float().cpu()
        timed = len(losses) - self._timed_from
        batch_size: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        figures = {
            "steps": len(losses),
            "seconds_before_training": self._first,
            "seconds_per_step": seconds / timed,
            "images_per_second": timed * batch_size / seconds,
            "losses_finite": bool(losses.isfinite().all()),
            "loss_first": float(losses[: len(losses) // 4 + 1].mean()),
            "loss_last": float(losses[-(len(losses) // 4 + 1) :].mean()),
            "peak_gib": peak_gib(pl_module.device),
            "device": str(pl_module.device),
        }
        self.file.write_text(dumps(figures, indent=2) + "\n", encoding="utf-8")


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    """Memory of the device that tensors took at most, GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
