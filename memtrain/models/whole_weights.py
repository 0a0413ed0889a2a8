"""Whole weights of a model whose weights are spread over processes (FSDP2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(module: nn.Module) -> bool:
    """Return whether this process holds only parts of the weights."""
    return any(isinstance(value, DTensor) for value in module.parameters())


def whole(model: Any, *, keep: bool) -> Any:
    """Copy a diffusers model with whole weights to the CPU. Every process must call this.

    Args:
        model: a sharded model.
        keep: whether this process keeps the copy.

    Returns:
        The copy, or None.
    """
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            weights[name] = tensor.detach().cpu()
    if not keep:
        return None
    # FSDP2 puts a class of its own in front of the model's class.
    kind: Any = next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))
    made = kind.from_config(model.config)
    made.load_state_dict(weights)
    return made.to(next(iter(weights.values())).dtype).train(model.training)
