"""With which settings a checkpoint was trained, and what of them a run that continues it may change.

The contract is :mod:`memtrain.files.resume_contract`'s. Lightning restores the optimizer with all of its options, the
schedule's step and the weight average with its decay: a run that is given others would go on with those of the
checkpoint and show its own. So these are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from memtrain.files.resume_contract import check_settings, plain
from memtrain.training.schedule import optimizer_of

log = logging.getLogger(__name__)

OF_THE_TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val")
"""Options of Lightning's trainer."""


def settings_of(module: Any) -> dict[str, Any]:
    """What a :class:`~memtrain.training.text_to_image.TextToImageModule` is trained with, in plain values."""
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
    """The same with the length of the run, where the learning rate depends on it."""
    return {**settings, **({} if settings["schedule"] == "constant" else {"total_steps": total_steps})}


def check_training(module: Any, saved: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Compare the settings of a checkpoint with a module's, and log what differs from here on.

    Args:
        module: that takes the checkpoint up.
        saved: settings of the checkpoint.
        checkpoint: all of it.

    Raises:
        ConfigurationError: naming what may not differ.
    """
    trainer = getattr(module, "_trainer", None)
    if trainer is None or trainer.state.fn != "fit":  # loaded to be looked at, not to be trained
        return
    say(module, check_settings(saved, settings_of(module)))
    unfinished = unfinished_window(checkpoint, int(saved.get("accumulate_grad_batches") or 1))
    if unfinished:
        say(
            module,
            [
                f"the checkpoint was written when {unfinished} batch(es) had been accumulated for the next step, whose "
                "gradients no checkpoint holds: they do not train, and the next step is of the batches that follow"
            ],
        )


def unfinished_window(checkpoint: Mapping[str, Any], accumulate: int) -> int:
    """Batches before a checkpoint whose gradients had not been used in a step."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    progress = loops.get("epoch_loop.batch_progress")
    if not progress or progress["is_last_batch"]:
        return 0
    return int(progress["current"]["ready"]) % accumulate


def say(module: Any, notes: list[str]) -> None:
    """Log what differs, on one process."""
    for note in notes if module.global_rank == 0 else []:
        log.warning("Continued with other settings: %s", note)


def _described(value: Any) -> Any:
    """An options object in plain values."""
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return {"class": type(value).__name__, **{name: _described(one) for name, one in vars(value).items()}}
