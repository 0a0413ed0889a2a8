"""The text attention of single denoiser calls, for the detectors that look at it.

Queries and keys are projected once more by a pre-hook on each attention module, as the probe does in training. Nothing
is read in calls that no detector asks about, and of a map over image tokens only the column of EOS is kept, at the
sites of the first block that has attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ProbeError
from memtrain.functional.attention import token_attention, token_map
from memtrain.models.backbones.base import Backbone


class CallAttention:
    """Hooks on the attention modules of a denoiser.

    Args:
        denoiser: unwrapped.
        backbone: its family.
        images: B; the last B rows of a call are those under the prompts.

    Attributes:
        token_attention: per site `(B, T)` of the call at hand.
        eos_attention: per site of the first block `(B, N)` of the call at hand.
    """

    def __init__(self, denoiser: nn.Module, backbone: Backbone, *, images: int) -> None:
        self.backbone, self.images = backbone, images
        self.sites = backbone.select_sites(denoiser, "*")
        first = next(iter(self.sites)).split(".attentions.")[0]
        self.first_block = [name for name in self.sites if name.split(".attentions.")[0] == first]
        self.token_attention: dict[str, Tensor] = {}
        self.eos_attention: dict[str, Tensor] = {}
        self._tokens, self._every = 0, False
        self._eos: Tensor | None = None

    def attach(self) -> list[Callable[[], None]]:
        """Register the hooks.

        Returns:
            What removes them again.
        """
        return [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True).remove
            for name, module in self.sites.items()
        ]

    def begin(self, tokens: int, *, every_token: bool, eos: Tensor | None) -> None:
        """Forget the last call, and say what to read of the next.

        Args:
            tokens: T, text tokens that the denoiser is given.
            every_token: read `token_attention`.
            eos: `(B,)` index of the token whose `eos_attention` is read, or None for none.
        """
        self.token_attention, self.eos_attention = {}, {}
        self._tokens, self._every, self._eos = tokens, every_token, eos

    def check(self) -> None:
        """Raise if a site was silent in a call that was to be read.

        Raises:
            ProbeError: naming the first.
        """
        silent = [name for name in self.sites if self._every and name not in self.token_attention]
        silent += [name for name in self.first_block if self._eos is not None and name not in self.eos_attention]
        if silent:
            raise ProbeError(
                f"{len(silent)} of {len(self.sites)} attention sites reported nothing, first {silent[0]!r}",
                expected="a reading from every site",
                remedy="evaluate the denoiser uncompiled",
            )

    def end(self) -> None:
        """Read nothing until the next :meth:`begin`."""
        self._every, self._eos = False, None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            eos = self._eos if name in self.first_block else None
            if not self._every and eos is None:
                return
            with torch.no_grad():
                projection = self.backbone.project(module, args, kwargs, tokens=self._tokens)
                query, key = projection.query[-self.images :], projection.key[-self.images :]
                valid = None if projection.valid is None else projection.valid[-self.images :]
                if self._every:
                    self.token_attention[name] = token_attention(query, key, valid=valid)
                if eos is not None:
                    self.eos_attention[name] = token_map(query, key, eos, valid=valid)

        return hook
