"""The learning-rate schedule: linear warm-up, then constant or cosine decay to zero."""

from __future__ import annotations

from typing import Any, Literal

from diffusers.optimization import get_scheduler
from torch.optim import Optimizer

Schedule = Literal["constant", "cosine"]


def with_warmup(optimizer: Optimizer, schedule: Schedule, warmup_steps: int, total_steps: int) -> dict[str, Any]:
    """What `configure_optimizers` returns: the optimizer with a per-step schedule.

    Args:
        optimizer: its learning rates are the peaks.
        schedule: after the warm-up, `constant` or `cosine` (to zero at `total_steps`).
        warmup_steps: steps of linear warm-up.
        total_steps: optimizer steps of the run.
    """
    name = {"constant": "constant_with_warmup", "cosine": "cosine"}[schedule]
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
