"""SanaTransformer2DModel (Sana): a transformer with linear self-attention, and cross-attention to Gemma's tokens.

The linear self-attention has no distribution and reads no text, so it is not a site. The cross-attention normalizes
queries and keys over all heads at once (if it normalizes them), so its projections differ from those of diffusers'
default processor. Gemma's tokens are `BOS words padding`, and the model masks padding out. Default sites: 12 blocks,
evenly spaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from memtrain.models.backbones.base import evenly_spaced, named_arguments
from memtrain.models.backbones.cross_attention import CrossAttentionBackbone


class SanaBackbone(CrossAttentionBackbone):
    """Cross-attention of SanaTransformer2DModel."""

    clip_layout: ClassVar[bool] = False
    mask_at: ClassVar[tuple[str, ...]] = ("encoder_attention_mask",)

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Return whether it is a SanaTransformer2DModel."""
        return isinstance(module, SanaTransformer2DModel)

    def default_sites(self, names: Sequence[str]) -> list[str]:
        """Return 12 blocks, evenly spaced."""
        return evenly_spaced(names, 12)

    def heads(self, attention: Any, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Compute as diffusers' SanaAttnProcessor2_0 does: norms come before the heads are split."""
        query, key = attention.to_q(hidden), attention.to_k(text)
        query = query if attention.norm_q is None else attention.norm_q(query)
        key = key if attention.norm_k is None else attention.norm_k(key)
        shape = (hidden.shape[0], -1, attention.heads, key.shape[-1] // attention.heads)
        return query.view(shape).transpose(1, 2), key.view(shape).transpose(1, 2)

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Read `forward(hidden_states, encoder_hidden_states, timestep)`."""
        sample, text, timestep = named_arguments(("hidden_states", "encoder_hidden_states", "timestep"), args, kwargs)
        return sample, timestep, text
