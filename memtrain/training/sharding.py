"""Strategies that spread the weights over processes, with which :class:`TextToImageModule` cannot train."""

from __future__ import annotations

from typing import Any

from memtrain.errors import ConfigurationError

SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
"""Classes of Lightning whose processes hold parts of the weights; of DeepSpeed it depends on its stage."""


def refuse_sharded(strategy: Any) -> None:
    """Refuse a strategy whose processes do not hold the weights whole.

    Args:
        strategy: of the trainer.

    Raises:
        ConfigurationError: if it is one, because the weight average and the exported pipeline would be of one process's
            part.
    """
    if found := [kind.__name__ for kind in type(strategy).__mro__ if kind.__name__ in SHARDING]:
        raise ConfigurationError(
            f"TextToImageModule cannot train with {found[0]}, which spreads the weights over processes",
            expected="weights that every process holds whole, of which the average and the exported pipeline are made",
            remedy="use strategy: ddp; for what does not fit, `lora`, `execution.gradient_checkpointing` or a smaller "
            "batch with trainer.accumulate_grad_batches. In a loop of your own, memtrain.guard.Guard watches FSDP2",
        )
