"""Captions that are longer than what the text encoder reads are counted."""

import pytest
from transformers import AutoTokenizer

from memtrain.data.cut_captions import cut_captions, tell_of_cut
from memtrain.data.token_table import tokens_by

from ..conftest import ROOT


@pytest.fixture(scope="module")
def clip():
    return AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny-sd" / "tokenizer")


def test_how_many_and_how_long(clip, caplog):
    room = clip.model_max_length - 2
    word = next(word for word in ("a", "cat", "the") if len(clip(word)["input_ids"]) == 3)
    texts = [" ".join([word] * count) for count in (1, room - 1, room, room + 1, 3 * room, 3 * room)]
    tell_of_cut(texts, tokens_by(clip)(texts), clip)
    assert f"3 of 6 captions are longer than the {room + 2} tokens" in caplog.text
    assert f"The longest has {3 * room + 2}" in caplog.text


def test_nothing_is_said_of_captions_that_fit(clip, caplog):
    tell_of_cut(["a cat"] * 3, tokens_by(clip)(["a cat"] * 3), clip)
    tell_of_cut(["a cat"], {}, clip)
    assert not caplog.text


def test_a_tokenizer_that_always_cuts(tokenizer, caplog):
    texts = ["one two three four five six", "one"]
    assert cut_captions(texts, tokens_by(tokenizer)(texts), tokenizer) == {texts[0]: 0}
    tell_of_cut(texts, tokens_by(tokenizer)(texts), None)
    assert "1 of 2 captions fill all 6 tokens" in caplog.text
