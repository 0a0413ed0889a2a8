"""The common part of families whose text is read by diffusers' `Attention` in a cross-attention."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import Backbone, Projection, named_arguments, refuse_fused


class CrossAttentionBackbone(Backbone):
    """Every `attn2` reads the text."""

    joint: ClassVar[bool] = False

    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return every `attn2`, in the order of registration."""
        return {
            name: module
            for name, module in denoiser.named_modules()
            if isinstance(module, Attention) and name.endswith("attn2")
        }

    def project(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, tokens: int
    ) -> Projection:
        """Compute as diffusers' AttnProcessor2_0 does; a mask of the text (a bias `(B, 1, T)`) is respected."""
        assert isinstance(attention, Attention)
        refuse_fused(attention)
        names = ("hidden_states", "encoder_hidden_states", "attention_mask")
        hidden, text, mask = named_arguments(names, args, kwargs)
        if text is None or hidden.dim() != 3:
            raise ProbeError(
                f"A cross-attention was called {'without' if text is None else 'with'} text, on {hidden.dim()} axes",
                expected="text embeddings and an input (B, N, C)",
                remedy="use the denoiser's own blocks",
            )
        if attention.norm_cross:
            text = attention.norm_encoder_hidden_states(text)
        query, key = self.heads(attention, hidden, text)
        return Projection(query, key, text, valid=None if mask is None else _valid(mask))

    def heads(self, attention: Any, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries `(B, H, N, D)` and keys `(B, H, T, D)` of an attention's input and the text."""
        query, key = attention.to_q(hidden), attention.to_k(text)
        shape = (hidden.shape[0], -1, attention.heads, key.shape[-1] // attention.heads)
        query, key = query.view(shape).transpose(1, 2), key.view(shape).transpose(1, 2)
        query = query if attention.norm_q is None else attention.norm_q(query)
        key = key if attention.norm_k is None else attention.norm_k(key)
        return query, key


def _valid(bias: Tensor) -> Tensor:
    """Turn diffusers' bias of 0 and −10,000 back into a mask."""
    return bias[:, 0] > -5000
