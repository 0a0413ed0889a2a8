"""Token attention and its entropy, from queries and keys, without keeping the probability matrix."""

from __future__ import annotations

import torch
from torch import Tensor

MAXIMUM_ELEMENTS = 2**26
"""Probabilities held at once; image tokens are processed in chunks beyond it (256 MB in fp32)."""


def token_attention(query: Tensor, key: Tensor, *, scale: float | None = None) -> Tensor:
    """Cross-attention each text token receives, averaged over image tokens and heads.

    `softmax(query keyᵀ · scale)` over text tokens, then the mean over N and H: the order of MemAttn (Ren et al.,
    "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross Attention", ECCV 2024),
    where the entropy is taken of the average. Computed in fp32 with autocast off.

    Args:
        query: `(B, H, N, D)`.
        key: `(B, H, T, D)`.
        scale: of the logits; default 1 / √D.

    Returns:
        `(B, T)`, rows sum to 1.
    """
    batch, heads, pixels, channels = query.shape
    scale = channels**-0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        keys = key.float().transpose(-1, -2) * scale
        step = max(1, MAXIMUM_ELEMENTS // (batch * heads * key.shape[2]))
        if step >= pixels:
            return torch.softmax(query.float() @ keys, dim=-1).mean(dim=(1, 2))
        total = query.new_zeros(batch, key.shape[2], dtype=torch.float32)
        for start in range(0, pixels, step):
            chunk = query[:, :, start : start + step].float()
            total = total + torch.softmax(chunk @ keys, dim=-1).sum(dim=(1, 2))
        return total / (heads * pixels)


def entropy(probabilities: Tensor) -> Tensor:
    """`−Σ p ln p` over the last dimension, in nats, with `0 ln 0 = 0`.

    Args:
        probabilities: `(..., T)`, non-negative.

    Returns:
        `(...)` in fp32; `ln T` for a uniform distribution.
    """
    return torch.special.entr(probabilities.float()).sum(-1)
