"""Attention written out as in the code published with MemAttn (Ren et al., ECCV 2024, section 4), to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


class PublishedProcessor:
    """Cross-attention that builds its whole probability map.

    Args:
        keep: given each map, `(B × heads, queries, tokens)`.
    """

    def __init__(self, keep: Callable[[Tensor], object]) -> None:
        self.keep = keep

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """One cross-attention."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        maps = attn.get_attention_scores(query, key)
        self.keep(maps.detach())
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(maps, value))))
