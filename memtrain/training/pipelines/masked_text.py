"""The common part of families with one text encoder, in which both encoder and denoiser mask padding (PixArt, Sana).

Captions are put into lower case and stripped, as in the stock pipelines, and padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import encode_tokens
from memtrain.training.pipelines.base import TrainablePipeline, count_words, words


class MaskedTextPipeline(TrainablePipeline):
    """One text encoder, whose padding the denoiser masks."""

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make `input_ids`, `prompt_length` and `prompt_mask` `(B, T)`."""
        texts = [caption.lower().strip() for caption in captions]
        ids, mask = tokenize(self.tokenizer, texts, length=self.max_sequence_length)
        return {
            "input_ids": ids,
            "prompt_length": count_words(mask),
            "prompt_mask": words(self.tokenizer, ids, mask),
        }

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `text_embeddings` `(B, T, width)` and `text_mask`."""
        mask = _caption_mask(tokens)
        embeddings = encode_tokens(self.pipeline.text_encoder, tokens["input_ids"], attention_mask=mask)
        return {"text_embeddings": embeddings, "text_mask": mask}


def _caption_mask(tokens: Mapping[str, Tensor]) -> Tensor:
    """Return `(B, T)` int64: 1 for the tokens of each caption with its marks, 0 for the padding behind it."""
    ids, length = tokens["input_ids"], tokens["prompt_length"]
    return (torch.arange(ids.shape[1], device=ids.device) < length.to(ids.device)[:, None]).to(torch.int64)
