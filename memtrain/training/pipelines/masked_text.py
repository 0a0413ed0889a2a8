"""What the families have in common whose one text encoder and denoiser both mask padding (PixArt, Sana).

Captions are lower-cased and stripped, as the stock pipelines do, and padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import encode_tokens
from memtrain.training.pipelines.base import TrainablePipeline, count_words, words


class MaskedTextPipeline(TrainablePipeline):
    """One text encoder, whose padding the denoiser is told of."""

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `prompt_length` and `prompt_mask` `(B, T)`."""
        texts = [caption.lower().strip() for caption in captions]
        ids, mask = tokenize(self.tokenizer, texts, length=self.max_sequence_length)
        return {
            "input_ids": ids,
            "prompt_length": count_words(mask),
            "prompt_mask": words(self.tokenizer, ids, mask),
        }

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`text_embeddings` `(B, T, width)` and `text_mask`."""
        mask = _caption_mask(tokens)
        embeddings = encode_tokens(self.pipeline.text_encoder, tokens["input_ids"], attention_mask=mask)
        return {"text_embeddings": embeddings, "text_mask": mask}


def _caption_mask(tokens: Mapping[str, Tensor]) -> Tensor:
    """`(B, T)` int64: 1 for the tokens of each caption, its marks included, 0 for the padding behind it."""
    ids, length = tokens["input_ids"], tokens["prompt_length"]
    return (torch.arange(ids.shape[1], device=ids.device) < length.to(ids.device)[:, None]).to(torch.int64)
