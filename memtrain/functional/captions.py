"""Changed captions as token ids, under CLIP's layout `BOS words EOS padding`.

Source: the caption augmentations of Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models",
NeurIPS 2023, on tokens rather than words, so that they run where the tokens are.
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
    """Captions with random tokens added, in their place, or with tokens of their own repeated.

    Args:
        ids: `(B, T)` int64.
        length: `(B,)` tokens of each caption with BOS and EOS.
        kind: what is done.
        uniform: `(B, tokens, 3)` from 0 to below 1, on the device of `ids`: for each new token which it is, where it
            goes, and which one it repeats. As many tokens as fit are used.
        vocabulary: random tokens are drawn below this id; `repeat` does not need it.

    Returns:
        `input_ids` and `prompt_length` as before.
    """
    count, tokens = ids.shape[1], uniform.shape[1]
    position = torch.arange(count, device=ids.device)
    # In fp32 a number close to 1 can round up to `vocabulary` itself.
    drawn = (uniform[..., 0] * vocabulary).long().clamp(max=vocabulary - 1)
    if kind == "replace":
        tokens = min(tokens, count - 2)
        last = torch.full_like(length, tokens + 1)
        words = ids[:, :1].repeat(1, count)
        words[:, 1 : tokens + 1] = drawn[:, :tokens]
        return _end(words, last, ids, length), last + 1
    for turn in range(tokens):
        # Between BOS and EOS there are `length - 1` places to insert at, and `length - 2` tokens to repeat.
        place = 1 + (uniform[:, turn, 1] * (length - 1)).long().minimum(length - 2)
        chosen = 1 + (uniform[:, turn, 2] * (length - 2)).long().minimum((length - 3).clamp(min=0))
        token = drawn[:, turn] if kind == "add" else ids.gather(1, chosen[:, None])[:, 0]
        fits = (length < count) if kind == "add" else (length < count) & (length > 2)
        before = torch.where(position < place[:, None], ids, ids.roll(1, dims=1))
        inserted = torch.where(position == place[:, None], token[:, None], before)
        ids, length = torch.where(fits[:, None], inserted, ids), torch.where(fits, length + 1, length)
    return ids, length


def _end(words: Tensor, last: Tensor, ids: Tensor, length: Tensor) -> Tensor:
    """Put EOS at `last` and padding behind it, the tokens that `ids` has there."""
    position = torch.arange(ids.shape[1], device=ids.device)
    eos = ids.gather(1, (length - 1)[:, None])
    padding = torch.where((length < ids.shape[1])[:, None], ids[:, -1:], eos)
    return torch.where(position < last[:, None], words, torch.where(position == last[:, None], eos, padding))
