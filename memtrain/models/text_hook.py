"""A hook that changes the text embeddings which a denoiser's training forwards get.

It stands in front of the denoiser as the host calls it: outside of what torch.compile compiled, and of the blocks that
gradient checkpointing runs again. Forwards without gradients (validation, sampling, reference profile) are left alone.
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
        denoiser: as the host calls it, wrapped or not.
        backbone: its family.
        change: text embeddings `(B, T, width)` of a forward with gradients to those that it shall get. A host that
            checkpoints the whole denoiser calls it again in the backward pass, and has to get the same.
    """

    def __init__(self, denoiser: nn.Module, backbone: Backbone, change: Callable[[Tensor], Tensor]) -> None:
        self.host, self.backbone, self.change = denoiser, backbone, change
        self._undo: Callable[[], None] | None = None

    def attach(self) -> TextHook:
        """Put the hook in place; attaching twice is an error."""
        if self._undo is not None:
            raise ProbeError("The text hook is attached already", remedy="detach() it first")
        self._undo = hook_calls(self.host, self._before)
        return self

    def detach(self) -> None:
        """Remove the hook; harmless when not attached."""
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
