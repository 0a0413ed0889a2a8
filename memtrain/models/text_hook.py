"""A hook that changes the text embeddings of a denoiser's training forwards.

It stands in front of the denoiser that the host calls: outside the region that torch.compile compiled, and outside the
blocks that gradient checkpointing runs again. Forwards without gradients (validation, sampling, reference profile) do
not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import Backbone
from memtrain.models.call_hooks import hook_calls


class TextHook:
    """Replace text embeddings on their way into a denoiser.

    Args:
        denoiser: the denoiser that the host calls, wrapped or not.
        backbone: the backbone of its family.
        change: the function from the text embeddings `(B, T, width)` of a forward with gradients to the new ones. A
            host that checkpoints the whole denoiser calls it again in the backward pass, and must get the same result.
    """

    def __init__(self, denoiser: nn.Module, backbone: Backbone, change: Callable[[Tensor], Tensor]) -> None:
        self.host, self.backbone, self.change = denoiser, backbone, change
        self._undo: Callable[[], None] | None = None

    def attach(self) -> TextHook:
        """Put the hook in place; attaching twice is an error."""
        if self._undo is not None:
            raise ProbeError("The text hook is already attached", remedy="call detach() first")
        self._undo = hook_calls(self.host, self._before)
        return self

    def detach(self) -> None:
        """Remove the hook; nothing happens if it is not attached."""
        if self._undo is not None:
            self._undo()
        self._undo = None

    @torch.compiler.disable
    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.is_grad_enabled():
            return args, kwargs
        text = self.backbone.inputs(args, kwargs)[2]
        return self.backbone.with_text(args, kwargs, self.change(text))
