"""FSDP2: the denoiser's weights spread over processes, for full fine-tuning of models that fit no single device.

Source: torch's `fully_shard`, under Lightning's ModelParallelStrategy:

    trainer:
      strategy:
        class_path: lightning.pytorch.strategies.ModelParallelStrategy
        init_args: {data_parallel_size: 8, tensor_parallel_size: 1, save_distributed_checkpoint: false}

Each process holds a part of every weight and of its optimizer state. The weights of a transformer block are gathered
while it runs. Cost: this communication. The first process gathers the exported pipeline on its CPU at the end.

The monitor watches with `reference: false`, by its held-out samples.

Cannot: keep a weight average (`ema_decay`), train adapters or text encoders, resume, or compare with the base model.
StopBeforeMemorization and MemorizationSinks, which change the weights themselves, do not work with it. Lightning's
FSDPStrategy (FSDP1) and DeepSpeedStrategy are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from memtrain.errors import ConfigurationError
from memtrain.models.whole_weights import is_sharded

REFUSED = ("FSDPStrategy", "DeepSpeedStrategy")
"""Classes of Lightning whose processes hold parts of the weights in unsupported ways."""


def check_strategy(module: Any, trainer: Any) -> None:
    """Refuse combinations that do not work with weights that are spread over processes.

    Args:
        module: a TextToImageModule.
        trainer: Lightning's trainer.

    Raises:
        ConfigurationError: with the first such combination.
    """
    strategy = trainer.strategy
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    if found := [name for name in REFUSED if name in kinds]:
        raise _refused(
            f"{found[0]}", "strategy: ddp; or ModelParallelStrategy, as memtrain.training.sharding describes"
        )
    if "ModelParallelStrategy" not in kinds:
        return
    # The first process holds only a part of the weights, so it could not name the profile after them.
    compared = any(getattr(getattr(one, "options", None), "reference", False) for one in trainer.callbacks)
    wrong = {
        "a monitor that compares with the base model": ("reference: false, with held-out samples", compared),
        "a weight average": ("ema_decay: null", module.ema is not None),
        "adapters, which are small enough for every process": ("strategy: ddp", module.lora is not None),
        "text encoders that are trained": ("train_text_encoder: false", hasattr(module, "trained_text_encoders")),
        "a checkpoint to resume from": ("a new run", trainer.ckpt_path is not None),
        "a compiled denoiser, which is not tested": ("execution.compile: false", module.execution.compile),
        "tensor parallelism": ("tensor_parallel_size: 1", strategy._tensor_parallel_size != 1),
        "checkpoints in many files": ("save_distributed_checkpoint: false", strategy._save_distributed_checkpoint),
    }
    for what, (expected, is_wrong) in wrong.items():
        if is_wrong:
            raise _refused(f"ModelParallelStrategy and {what}", expected)


def shard(module: Any) -> None:
    """Spread the denoiser of a module over its device mesh, if there is one and this was not done before."""
    mesh = module.device_mesh
    if mesh is None or is_sharded(module.denoiser):
        return
    # The format is not channels_last, because FSDP2 cannot split it.
    module.denoiser.to(memory_format=torch.contiguous_format)
    for part in list(module.denoiser.modules()):
        if type(part).__name__.endswith("TransformerBlock"):
            fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(module.denoiser, mesh=mesh["data_parallel"])


def _refused(found: str, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"TextToImageModule cannot train with {found}", expected=expected, remedy="change one of both settings"
    )
