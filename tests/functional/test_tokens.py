"""Captions of any length become rows of one length."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline

from memtrain.functional.tokens import tokenize
from tests.conftest import WordTokenizer


def test_captions_are_padded_and_cut_and_the_mask_tells_their_length(tokenizer: WordTokenizer) -> None:
    ids, mask = tokenize(tokenizer, ("a b", "", "a b c d e f g"))
    assert ids.shape == mask.shape == (3, 6)
    assert mask.sum(dim=1).tolist() == [4, 2, 6]
    assert ids[1].tolist() == [1, 2, 0, 0, 0, 0]


def test_another_length_may_be_asked_for(pipeline: StableDiffusionPipeline) -> None:
    whole, _ = tokenize(pipeline.tokenizer, ["a b", "c"])
    ids, mask = tokenize(pipeline.tokenizer, ["a b", "c"], length=5)
    assert (whole.shape, ids.shape) == ((2, 12), (2, 5))
    assert ids.tolist() == whole[:, :5].tolist()
    assert mask.sum(dim=1).tolist() == [4, 3]
