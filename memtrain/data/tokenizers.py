"""The choice of the tokenizer for captions, and the warning of captions that it cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from memtrain.data.cut_captions import tell_of_cut
from memtrain.data.dataset import CaptionedImages
from memtrain.data.token_table import Tokens, tokens_by
from memtrain.files.shipped import at_hand


def named_tokenizer(path: str) -> Any:
    """Load the named tokenizer. A folder is loaded without any request to the Hub."""
    path = at_hand(path)
    return AutoTokenizer.from_pretrained(path, local_files_only=Path(path).exists(), trust_remote_code=False)


def tokens_of(module: Any, path: str | None) -> Tokens | None:
    """Return the function from captions to tokens: the named tokenizer's, else the module's, else its tokenizer's."""
    if path:
        return tokens_by(named_tokenizer(path))
    if hasattr(module, "tokens"):
        found: Tokens = module.tokens
        return found
    tokenizer = getattr(module, "tokenizer", None)
    return None if tokenizer is None else tokens_by(tokenizer)


def tell_of_cut_captions(train: CaptionedImages, module: Any, path: str | None) -> None:
    """Warn of captions that are longer than the text encoder reads."""
    tokenizer = named_tokenizer(path) if path else getattr(module, "tokenizer", None)
    tell_of_cut(train.all_texts(), train.tokens, tokenizer)
