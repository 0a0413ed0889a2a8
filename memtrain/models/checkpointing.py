"""The kind of a denoiser's gradient checkpointing, found out before training.

Under reentrant checkpointing, a block runs without a graph and only its backward pass makes one. So values that were
read in the forward pass have no gradient. Diffusers keeps the checkpointing function on the modules, and it may be any
function. So it is tried with a module without weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ProbeError


class _Witness(nn.Module):
    """A module that notes whether it runs with a graph."""

    with_graph = True

    def forward(self, tensor: Tensor) -> Tensor:
        self.with_graph = torch.is_grad_enabled()
        return tensor * 1


def is_reentrant(checkpoint: Callable[..., Any]) -> bool:
    """Return whether `checkpoint(module, tensor)` first runs the module without a graph; False if the call fails."""
    witness = _Witness()
    with torch.enable_grad(), warnings.catch_warnings():
        # torch warns without `use_reentrant`; the training forward repeats that warning.
        warnings.simplefilter("ignore")
        try:
            checkpoint(witness, torch.zeros(1, requires_grad=True))
        except Exception:
            # The function needs other arguments; the first training forward will show its kind.
            return False
    return not witness.with_graph


def refuse_reentrant(denoiser: nn.Module) -> None:
    """Refuse a denoiser whose blocks are checkpointed reentrantly.

    Raises:
        ProbeError: with the name of the first such block.
    """
    asked: dict[int, bool] = {}
    for name, module in denoiser.named_modules():
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        if not getattr(module, "gradient_checkpointing", False) or checkpoint is None:
            continue
        if asked.setdefault(id(checkpoint), is_reentrant(checkpoint)):
            raise ProbeError(
                f"{name or type(denoiser).__name__} is checkpointed reentrantly, so a penalty on readings of its "
                "forward pass would have no gradient",
                expected="non-reentrant gradient checkpointing",
                remedy="pass use_reentrant=False",
            )
