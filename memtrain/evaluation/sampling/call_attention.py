"""The text attention of single denoiser calls, for the detectors that read it.

Queries and keys are projected once more by a pre-hook on each attention module, as the probe does in training. Nothing
is read in calls that no detector needs. Only the column of EOS is kept of a map over image tokens, at the sites of
the first block that has attention.
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
        denoiser: denoiser without wrappers.
        backbone: family of the denoiser.
        images: number of images, B; the last B rows of a call are the conditional ones.

    Attributes:
        token_attention: attention of the current call, `(B, T)` per site.
        eos_attention: attention of the current call to EOS, `(B, N)` per site of the first block.
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
            Functions that remove the hooks.
        """
        return [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True).remove
            for name, module in self.sites.items()
        ]

    def begin(self, tokens: int, *, every_token: bool, eos: Tensor | None) -> None:
        """Forget the last call, and set what is read in the next one.

        Args:
            tokens: number of text tokens of the denoiser's input, T.
            every_token: whether `token_attention` is read.
            eos: `(B,)` index of the token whose `eos_attention` is read, or None for no EOS attention.
        """
        self.token_attention, self.eos_attention = {}, {}
        self._tokens, self._every, self._eos = tokens, every_token, eos

    def check(self) -> None:
        """Raise if a site reported nothing in a call that was read.

        Raises:
            ProbeError: if a site reported nothing; the message names the first.
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
