"""FluxTransformer2DModel (FLUX.1): joint attention with rotary positions, text tokens first.

Double-stream blocks project image and text separately. Single-stream blocks read one sequence, with the text first. The
text is T5's tokens, `words EOS padding`. Timesteps reach the model divided by 1,000 and are multiplied back here.
Default sites: 12 blocks, evenly spaced over both kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

from memtrain.models.backbones.base import Backbone, Projection, evenly_spaced, named_arguments, refuse_fused


class FluxBackbone(Backbone):
    """Joint attention of FluxTransformer2DModel."""

    joint: ClassVar[bool] = True
    clip_layout: ClassVar[bool] = False
    pooled_at: ClassVar[tuple[str, ...]] = ("pooled_projections",)

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Return whether it is a FluxTransformer2DModel."""
        return isinstance(module, FluxTransformer2DModel)

    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return `attn` of every double-stream block, then of every single-stream block."""
        found = {name: module for name, module in denoiser.named_modules() if isinstance(module, FluxAttention)}
        return dict(sorted(found.items(), key=lambda item: item[0].startswith("single")))

    def default_sites(self, names: Sequence[str]) -> list[str]:
        """Return 12 blocks, evenly spaced."""
        return evenly_spaced(names, 12)

    def project(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, tokens: int
    ) -> Projection:
        """Compute as diffusers' FluxAttnProcessor does."""
        assert isinstance(attention, FluxAttention)
        refuse_fused(attention)
        names = ("hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")
        hidden, text, _, rotary = named_arguments(names, args, kwargs)
        split = (-1, attention.head_dim)
        query = attention.norm_q(attention.to_q(hidden).unflatten(-1, split))
        key = attention.norm_k(attention.to_k(hidden).unflatten(-1, split))
        if attention.added_kv_proj_dim is not None:
            text_query = attention.norm_added_q(attention.add_q_proj(text).unflatten(-1, split))
            text_key = attention.norm_added_k(attention.add_k_proj(text).unflatten(-1, split))
            query, key = torch.cat([text_query, query], dim=1), torch.cat([text_key, key], dim=1)
        if rotary is not None:
            query = apply_rotary_emb(query, rotary, sequence_dim=1)
            key = apply_rotary_emb(key, rotary, sequence_dim=1)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        return Projection(query[:, :, tokens:], key[:, :, :tokens], text, joint_key=key, text=slice(tokens))

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Read `forward(hidden_states, encoder_hidden_states, pooled_projections, timestep)`."""
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
        sample, text, _, timestep = named_arguments(names, args, kwargs)
        return sample, timestep * 1000, text
