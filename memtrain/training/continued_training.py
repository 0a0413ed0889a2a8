"""The training settings of a checkpoint, and the changes that a continued run may make to them.

The contract is that of :mod:`memtrain.files.resume_contract`. Lightning restores the optimizer with all of its options,
the schedule's step and the weight average with its decay. A run with other options would go on with those of the
checkpoint, but show its own. So such changes are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from memtrain.files.resume_contract import check_settings, plain
from memtrain.training.schedule import optimizer_of

log = logging.getLogger(__name__)

OF_THE_TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val")
"""Options of Lightning's trainer that are compared."""


def settings_of(module: Any) -> dict[str, Any]:
    """Return the training settings of a :class:`~memtrain.training.text_to_image.TextToImageModule` in plain values."""
    trainer = module.trainer
    optimizer = optimizer_of(module.trained(), module.optimizer_class, learning_rate=module.learning_rate)
    options = {name: value for name, value in optimizer.defaults.items() if name not in ("lr", "initial_lr")}
    settings: dict[str, Any] = plain(
        {
            "objective": _described(module.objective),
            "optimizer": type(optimizer).__name__,
            "optimizer_options": options,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "ema_decay": module.ema_decay,
            "schedule": module.schedule if isinstance(module.schedule, str) else "by class path",
            "warmup_steps": module.warmup_steps,
            "model_seed": module.seed,
            **{name: getattr(trainer, name, None) for name in OF_THE_TRAINER},
            "lora_options": None if module.lora is None else {"dropout": module.lora.dropout},
        }
    )
    return settings


def with_length(settings: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
    """Add the length of the run to settings if the learning rate depends on it."""
    return {**settings, **({} if settings["schedule"] == "constant" else {"total_steps": total_steps})}


def check_training(module: Any, saved: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Compare the settings of a checkpoint with a module's, and log the differences.

    Args:
        module: the module that loads the checkpoint.
        saved: the settings in the checkpoint.
        checkpoint: the whole checkpoint.

    Raises:
        ConfigurationError: with the first difference that is not allowed.
    """
    trainer = getattr(module, "_trainer", None)
    if trainer is None or trainer.state.fn != "fit":  # the checkpoint is loaded for another purpose than training
        return
    say(module, check_settings(saved, settings_of(module)))
    unfinished = unfinished_window(checkpoint, int(saved.get("accumulate_grad_batches") or 1))
    if unfinished:
        say(
            module,
            [
                f"the checkpoint was written after {unfinished} batch(es) of an unfinished accumulation. No checkpoint "
                "holds their gradients, so these batches do not train, and the next step uses the batches that follow"
            ],
        )


def unfinished_window(checkpoint: Mapping[str, Any], accumulate: int) -> int:
    """Count the batches before a checkpoint whose gradients were not yet used in a step."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    progress = loops.get("epoch_loop.batch_progress")
    if not progress or progress["is_last_batch"]:
        return 0
    return int(progress["current"]["ready"]) % accumulate


def say(module: Any, notes: list[str]) -> None:
    """Log the differences, on the first process."""
    for note in notes if module.global_rank == 0 else []:
        log.warning("Continued with other settings: %s", note)


def _described(value: Any) -> Any:
    """Return an options object in plain values."""
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return {"class": type(value).__name__, **{name: _described(one) for name, one in vars(value).items()}}
