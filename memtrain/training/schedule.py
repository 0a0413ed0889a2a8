"""The learning rate and its schedule.

A schedule by name warms up linearly and then follows diffusers' `get_scheduler`. A schedule by class path is any of
torch's (`schedule: {class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {...}}`). It is stepped once per
optimizer step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from memtrain.errors import ConfigurationError

Schedule = Literal["constant", "cosine", "linear", "cosine_with_restarts", "polynomial"]
"""The names of schedules after the warm-up."""

LEARNING_RATE = 1e-5
"""The default learning rate of AdamW, which is usual for all weights of a denoiser."""


def with_warmup(
    optimizer: Optimizer,
    schedule: Schedule | Callable[[Optimizer], LRScheduler],
    warmup_steps: int,
    total_steps: int,
) -> dict[str, Any]:
    """Return the result of `configure_optimizers`: the optimizer with a per-step schedule.

    Args:
        optimizer: the optimizer, whose learning rates are the peaks.
        schedule: the schedule after the warm-up. `constant` does not change. `linear`, `polynomial` (the square of
            linear), `cosine` and `cosine_with_restarts` (from the peak again in the middle) go to zero at
            `total_steps`. It may also be a function that makes a scheduler of the optimizer, without this warm-up.
        warmup_steps: the steps of linear warm-up.
        total_steps: the optimizer steps of the run.

    Raises:
        ConfigurationError: if a scheduler by class path has a warm-up or waits for a metric, or if the optimizer finds
            its rate itself.
    """
    named = isinstance(schedule, str)
    if any(group["lr"] is None for group in optimizer.param_groups):
        if schedule == "constant" and not warmup_steps:
            return {"optimizer": optimizer}
        raise ConfigurationError(
            f"{type(optimizer).__name__} finds its learning rate itself, so a schedule has nothing to change",
            expected="`schedule: constant` and `warmup_steps: 0`",
            remedy="set both, or give the optimizer a learning rate (relative_step: false of Adafactor)",
        )
    if not named and warmup_steps:
        raise ConfigurationError(
            f"warmup_steps={warmup_steps} with a schedule by class path",
            expected="a scheduler that warms up itself, such as OneCycleLR",
            remedy="set warmup_steps: 0, or name one of memtrain's schedules (constant, cosine, linear, ...)",
        )
    if not isinstance(schedule, str):
        scheduler = schedule(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigurationError(
                "ReduceLROnPlateau waits for a metric, and is not stepped by optimizer steps",
                expected="a schedule of optimizer steps",
                remedy="set schedule: cosine, or derive from TextToImageModule and override configure_optimizers",
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    name = "constant_with_warmup" if schedule == "constant" else schedule
    # Two cycles are one restart. Only the schedules by these names take the two numbers.
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps, num_cycles=2, power=2.0
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def optimizer_of(
    parameters: list[nn.Parameter],
    kind: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    *,
    learning_rate: float | None,
) -> Optimizer:
    """Make the optimizer of a run.

    Args:
        parameters: the trained parameters.
        kind: the function that makes the optimizer of them; None for AdamW.
        learning_rate: the learning rate of the module; None if it has none.

    Raises:
        ConfigurationError: if two learning rates are given, or none is given and one is needed.
    """
    if kind is None:
        rate = LEARNING_RATE if learning_rate is None else learning_rate
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    optimizer = kind(parameters)
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: Optimizer, learning_rate: float | None) -> None:
    """Give a learning rate to an optimizer that was named by class path.

    Its own `lr` counts as given if it differs from the default of its class, because a parser fills in defaults.

    Args:
        optimizer: the optimizer as it was made.
        learning_rate: the learning rate of the module; None if it has none.

    Raises:
        ConfigurationError: if both differ, or if neither is given.
    """
    kind = type(optimizer)
    parameter = inspect.signature(kind.__init__).parameters.get("lr")
    default = None if parameter is None else parameter.default
    own = optimizer.defaults.get("lr")
    if own is None and optimizer.defaults.get("relative_step"):
        if learning_rate is not None:
            raise ConfigurationError(
                f"learning_rate={learning_rate}, but {kind.__name__} finds its own (relative_step)",
                expected="one of both",
                remedy="remove model.init_args.learning_rate, or add relative_step: false to the optimizer's init_args",
            )
        return
    given = None if own == default else own
    if given is not None and learning_rate is not None and float(given) != learning_rate:
        raise ConfigurationError(
            f"Two learning rates: learning_rate={learning_rate} of the module, lr={float(given)} of {kind.__name__}",
            expected="one learning rate",
            remedy="remove lr from the optimizer's init_args",
        )
    rate = learning_rate if given is None else given
    if rate is None:
        shown = "no lr" if own is None else f"lr={own}, the default of its class"
        raise ConfigurationError(
            f"No learning rate is given, and {kind.__name__} has {shown}",
            expected="a learning_rate of the module",
            remedy="set model.init_args.learning_rate: 1e-5 is usual for all weights, 1e-4 for LoRA, 1.0 for Prodigy",
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.defaults["lr"] = rate
