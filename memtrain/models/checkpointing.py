"""Which kind of gradient checkpointing a denoiser uses, found out before it trains.

Under reentrant checkpointing a block runs without a graph and only its backward pass makes one, so whatever was read in
the forward pass has no gradient. Diffusers keeps the function that checkpoints on the modules, and it may be anything;
so it is asked, by a call with a module of no weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ProbeError


class _Witness(nn.Module):
    """Notes whether it runs with a graph."""

    with_graph = True

    def forward(self, tensor: Tensor) -> Tensor:
        self.with_graph = torch.is_grad_enabled()
        return tensor * 1


def is_reentrant(checkpoint: Callable[..., Any]) -> bool:
    """Whether `checkpoint(module, tensor)` first runs the module without a graph; false if it cannot be called so."""
    witness = _Witness()
    with torch.enable_grad(), warnings.catch_warnings():
        # Without `use_reentrant` torch warns; the training forward will say so.
        warnings.simplefilter("ignore")
        try:
            checkpoint(witness, torch.zeros(1, requires_grad=True))
        except Exception:
            # A function that wants other arguments: the first training forward will tell.
            return False
    return not witness.with_graph


def refuse_reentrant(denoiser: nn.Module) -> None:
    """Raise if blocks of a denoiser are checkpointed reentrantly.

    Raises:
        ProbeError: naming the first one.
    """
    asked: dict[int, bool] = {}
    for name, module in denoiser.named_modules():
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        if not getattr(module, "gradient_checkpointing", False) or checkpoint is None:
            continue
        if asked.setdefault(id(checkpoint), is_reentrant(checkpoint)):
            raise ProbeError(
                f"{name or type(denoiser).__name__} is checkpointed reentrantly, so a penalty on what is read in its "
                "forward pass would have no gradient",
                expected="non-reentrant gradient checkpointing",
                remedy="pass use_reentrant=False",
            )
