"""SD3Transformer2DModel (Stable Diffusion 3 and 3.5): joint attention, image tokens first.

The text is CLIP's 77 tokens followed by T5's, so a prompt length alone does not place the words. The image-only second
attention of SD 3.5 reads no text and is not a site. Default sites: 12 blocks, evenly spaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from memtrain.models.backbones.base import Backbone, Projection, evenly_spaced, named_arguments, refuse_fused


class SD3Backbone(Backbone):
    """Joint attention of SD3Transformer2DModel."""

    joint: ClassVar[bool] = True
    clip_layout: ClassVar[bool] = False
    pooled_at: ClassVar[tuple[str, ...]] = ("pooled_projections",)

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Return whether it is an SD3Transformer2DModel."""
        return isinstance(module, SD3Transformer2DModel)

    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return `attn` of every joint block."""
        return {
            name: module
            for name, module in denoiser.named_modules()
            if isinstance(module, Attention) and name.endswith(".attn") and module.added_kv_proj_dim is not None
        }

    def default_sites(self, names: Sequence[str]) -> list[str]:
        """Return 12 blocks, evenly spaced."""
        return evenly_spaced(names, 12)

    def project(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, tokens: int
    ) -> Projection:
        """Compute as diffusers' JointAttnProcessor2_0 does."""
        assert isinstance(attention, Attention)
        refuse_fused(attention)
        hidden, text = named_arguments(("hidden_states", "encoder_hidden_states"), args, kwargs)
        query, image_key = attention.to_q(hidden), attention.to_k(hidden)
        shape = (hidden.shape[0], -1, attention.heads, image_key.shape[-1] // attention.heads)
        query, image_key = query.view(shape).transpose(1, 2), image_key.view(shape).transpose(1, 2)
        query = query if attention.norm_q is None else attention.norm_q(query)
        image_key = image_key if attention.norm_k is None else attention.norm_k(image_key)
        key = attention.add_k_proj(text).view(shape).transpose(1, 2)
        key = key if attention.norm_added_k is None else attention.norm_added_k(key)
        first = image_key.shape[2]
        return Projection(query, key, text, joint_key=torch.cat([image_key, key], dim=2), text=slice(first, None))

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Read `forward(hidden_states, encoder_hidden_states, pooled_projections, timestep)`."""
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
        sample, text, _, timestep = named_arguments(names, args, kwargs)
        return sample, timestep, text
