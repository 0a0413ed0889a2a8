"""How many captions are longer than what the text encoder reads: the rest of them is not trained on.

CLIP reads 77 tokens, about 50 words, and everything behind them is cut off without a trace. So captions that fill the
tokens to the last one are counted once more without the cut, and a warning says how many there are, of how many, and
how long the longest is. Cost: one further pass of the tokenizer over the long captions. Cannot: see the second, shorter
tokenizer of models that have two of different lengths (Flux: CLIP, for the pooled embedding).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)
MARKS = 2
"""Tokens of a caption that are no words: its begin and its end."""


def cut_captions(texts: Sequence[str], tokens: Mapping[str, Tensor], tokenizer: Any) -> dict[str, int]:
    """The captions that are cut, each once, with their numbers of tokens (0 where it is not known).

    Args:
        texts: B captions.
        tokens: made of them; `input_ids` `(B, T)` and `prompt_length` `(B,)`.
        tokenizer: by which they were made; None where it is not known.
    """
    if "prompt_length" not in tokens or "input_ids" not in tokens:
        return {}
    most = tokens["input_ids"].shape[1]
    full = (tokens["prompt_length"] >= most - MARKS).tolist()
    long = list(dict.fromkeys(text for text, fills in zip(texts, full, strict=True) if fills))
    if not long:
        return {}
    try:
        ids = tokenizer(long, truncation=False)["input_ids"]
        lengths = [len(one) for one in ids]
    except Exception:  # a tokenizer of somebody else, which need not do more than cut to one length
        return dict.fromkeys(long, 0)
    return {text: length for text, length in zip(long, lengths, strict=True) if length > most}


def tell_of_cut(texts: Sequence[str], tokens: Mapping[str, Tensor], tokenizer: Any) -> None:
    """Warn of captions that are cut; arguments as for :func:`cut_captions`."""
    cut = cut_captions(texts, tokens, tokenizer)
    if not cut:
        return
    most = tokens["input_ids"].shape[1]
    if not any(cut.values()):
        log.warning(
            "%d of %d captions fill all %d tokens that the text encoder reads; what goes beyond is cut off",
            sum(text in cut for text in texts),
            len(texts),
            most,
        )
        return
    log.warning(
        "%d of %d captions are longer than the %d tokens that the text encoder reads, the longest has %d: what is "
        "behind is cut off and not trained on",
        sum(text in cut for text in texts),
        len(texts),
        most,
        max(cut.values()),
    )
