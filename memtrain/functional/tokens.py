"""Captions as token ids, all of one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    model_max_length: int

    def __call__(self, text: Sequence[str], **kwargs: Any) -> Any:
        """Encode captions."""


def tokenize(tokenizer: Tokenizer, captions: Sequence[str], *, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Tokenize captions, padded to one length; longer captions are cut.

    Args:
        tokenizer: tokenizer of the text encoder.
        captions: B captions.
        length: number of tokens, T; default the tokenizer's `model_max_length`.

    Returns:
        `input_ids` and `attention_mask`, `(B, T)` int64. The mask's sum is the number of tokens of a caption, with BOS
        and EOS.
    """
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length if length is None else length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]
