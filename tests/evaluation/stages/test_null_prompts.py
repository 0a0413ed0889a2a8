"""Null prompts: of the same kind and length, none of the given ones, and made of them again the same way."""

from __future__ import annotations

import pytest

from memtrain.errors import DataError
from memtrain.evaluation.stages import null_prompts as module
from memtrain.evaluation.stages.null_prompts import null_prompts, words_of
from memtrain.evaluation.stages.word_stock import FUNCTION_WORDS, NAMES, stock_for

THINGS = [
    "apple",
    "tower",
    "beaver",
    "candle",
    "dragon",
    "engine",
    "falcon",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "kettle",
]
COLOURS = ["red", "blue", "green", "grey", "pink", "brown", "white", "orange", "black", "yellow", "purple", "cyan"]
TEMPLATED = [
    f"clip art of a {thing} {THINGS[-1 - at]}, in {COLOURS[at]} and {COLOURS[at - 3]}, {THINGS[at - 4]}, animal{at}"
    for at, thing in enumerate(THINGS)
]


def content(text: str) -> set[str]:
    words = {word.strip(",.").lower() for word in text.split()}
    return words - FUNCTION_WORDS - {"clip", "art"}


def test_the_frame_stays_and_the_words_come_from_several_prompts() -> None:
    made = null_prompts(TEMPLATED, 60, seed=3)
    assert len(set(made)) == 60
    assert not set(made) & set(TEMPLATED)
    given = [content(text) for text in TEMPLATED]
    for text in made:
        assert text.startswith(("clip art of a ", "clip art of an "))
        assert text.count(",") == 3
        own = content(text)
        assert max(len(own & one) for one in given) <= len(own) / 2
    known, used = set().union(*given), [word for text in made for word in content(text)]
    assert sum(word in known for word in used) > 0.9 * len(used)


def test_of_several_tries_the_nearest_in_length_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths in letters, which no exchange of words keeps by itself."""
    texts = [f"the {'x' * width}{letter} of {letter}{'y' * width}" for width in (1, 4, 8) for letter in "abcdefgh"]
    given = sorted([len(text) for text in texts] * 2)

    def off() -> int:
        made = null_prompts(texts, 48, lengths=lambda many: [len(one) for one in many])
        return sum(abs(a - b) for a, b in zip(sorted(map(len, made)), given, strict=True))

    with_tries = off()
    monkeypatch.setattr(module, "TRIES", 1)
    assert with_tries < off()


def test_the_same_arguments_make_the_same_prompts() -> None:
    assert null_prompts(TEMPLATED, 20, seed=1) == null_prompts(TEMPLATED, 20, seed=1)
    assert null_prompts(TEMPLATED, 20, seed=1) != null_prompts(TEMPLATED, 20, seed=2)


def test_one_prompt_takes_its_words_from_the_stock() -> None:
    made = null_prompts(["Living in the Light with Ann Lotz"], 30)
    assert len(set(made)) == 30
    for text in made:
        words = text.split()
        assert [words[at] for at in (1, 2, 4)] == ["in", "the", "with"]
        assert {words[at] for at in (0, 3, 5, 6)} <= set(NAMES)
        assert words_of(text) == 7


def test_articles_go_with_the_word_that_follows() -> None:
    made = null_prompts(["a cat", "an owl"], 60)
    assert all((text.split()[1][0] in "aeiou") == text.startswith("an ") for text in made)


def test_digits_and_capitals_stay_what_they_are() -> None:
    for text in null_prompts(["USA stamp 1987"], 10):
        first, second, third = text.split()
        assert first.isupper() and second.islower()
        assert third.isdigit() and len(third) == 4


def test_prompts_that_yield_too_few_are_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match="file of prompts that the model cannot have seen"):
        null_prompts(["the of"], 3)
    with pytest.raises(DataError, match="0 null prompts from 1 prompts"):
        null_prompts(["a cat"], 0)


@pytest.mark.parametrize(("word", "last"), [("Ann", True), ("cats", True), ("old", False), ("SALE", True)])
def test_words_of_the_stock_have_the_form_of_the_word(word: str, last: bool) -> None:
    for found in stock_for(word, last=last):
        assert found.isupper() == word.isupper()
        assert found[0].isupper() == word[0].isupper()
        assert found.endswith("s") or word != "cats"
