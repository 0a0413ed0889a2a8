"""Captions that are longer than the text encoder reads. The rest of such a caption is not trained on.

CLIP reads 77 tokens, about 50 words, and the tokenizer silently cuts off all further ones. Captions that fill all
tokens are therefore tokenized once more without the cut. A warning gives their number and the length of the longest
one.
Cost: one further pass of the tokenizer over the long captions.
Cannot: see the second, shorter tokenizer of models with two tokenizers of different lengths (Flux: CLIP, for the pooled
embedding).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)
MARKS = 2
"""The number of tokens of a caption that are not words: its begin and its end."""


def cut_captions(texts: Sequence[str], tokens: Mapping[str, Tensor], tokenizer: Any) -> dict[str, int]:
    """Return the captions that are cut, each once, with their numbers of tokens (0 if not known).

    Args:
        texts: B captions.
        tokens: their tokens: `input_ids` `(B, T)` and `prompt_length` `(B,)`.
        tokenizer: the tokenizer that made the tokens; None if it is not known.
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
    except Exception:  # another tokenizer may only be able to cut to one length
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
            "%d of %d captions fill all %d tokens that the text encoder reads. Further tokens are cut off.",
            sum(text in cut for text in texts),
            len(texts),
            most,
        )
        return
    log.warning(
        "%d of %d captions are longer than the %d tokens that the text encoder reads. The longest has %d tokens. "
        "The rest of each is cut off and not trained on.",
        sum(text in cut for text in texts),
        len(texts),
        most,
        max(cut.values()),
    )
