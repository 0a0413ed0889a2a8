"""Augmented captions as token ids, in CLIP's layout `BOS words EOS padding`.

Source: the caption augmentations of Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models",
NeurIPS 2023, on tokens instead of words, so that they run on the device of the tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def augment(
    ids: Tensor,
    length: Tensor,
    kind: Literal["add", "replace", "repeat"],
    *,
    uniform: Tensor,
    vocabulary: int = 1,
) -> tuple[Tensor, Tensor]:
    """Add random tokens to captions, replace captions by random tokens, or repeat tokens of captions.

    Args:
        ids: the token ids, `(B, T)` int64.
        length: the number of tokens of each caption with BOS and EOS, `(B,)`.
        kind: the kind of augmentation.
        uniform: random numbers from 0 to below 1, `(B, tokens, 3)`, on the device of `ids`. They choose each new token,
            its place, and the token that it repeats. Tokens that do not fit are left out.
        vocabulary: the bound below which ids of random tokens are drawn; `repeat` does not need it.

    Returns:
        The new `ids` and `length`.
    """
    count, tokens = ids.shape[1], uniform.shape[1]
    position = torch.arange(count, device=ids.device)
    # In fp32 the product of a number close to 1 can round up to `vocabulary` itself.
    drawn = (uniform[..., 0] * vocabulary).long().clamp(max=vocabulary - 1)
    if kind == "replace":
        tokens = min(tokens, count - 2)
        last = torch.full_like(length, tokens + 1)
        words = ids[:, :1].repeat(1, count)
        words[:, 1 : tokens + 1] = drawn[:, :tokens]
        return _end(words, last, ids, length), last + 1
    for turn in range(tokens):
        # Between BOS and EOS there are `length - 1` places for a new token, and `length - 2` tokens to repeat.
        place = 1 + (uniform[:, turn, 1] * (length - 1)).long().minimum(length - 2)
        chosen = 1 + (uniform[:, turn, 2] * (length - 2)).long().minimum((length - 3).clamp(min=0))
        token = drawn[:, turn] if kind == "add" else ids.gather(1, chosen[:, None])[:, 0]
        fits = (length < count) if kind == "add" else (length < count) & (length > 2)
        before = torch.where(position < place[:, None], ids, ids.roll(1, dims=1))
        inserted = torch.where(position == place[:, None], token[:, None], before)
        ids, length = torch.where(fits[:, None], inserted, ids), torch.where(fits, length + 1, length)
    return ids, length


def _end(words: Tensor, last: Tensor, ids: Tensor, length: Tensor) -> Tensor:
    """Put EOS at `last`, followed by padding, with the tokens that `ids` uses for them."""
    position = torch.arange(ids.shape[1], device=ids.device)
    eos = ids.gather(1, (length - 1)[:, None])
    padding = torch.where((length < ids.shape[1])[:, None], ids[:, -1:], eos)
    return torch.where(position < last[:, None], words, torch.where(position == last[:, None], eos, padding))
