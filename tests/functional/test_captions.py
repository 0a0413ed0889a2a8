"""Changed captions stay captions: BOS, words, one EOS, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memtrain.functional.captions import augment

BOS, EOS, PAD, VOCABULARY = 90, 91, 92, 50
LENGTHS = torch.tensor([2, 3, 5, 7, 8])


def captions() -> torch.Tensor:
    """Words 60, 61, ... so that a random token below 50 is told apart."""
    ids = torch.full((5, 8), PAD)
    for row, length in enumerate(LENGTHS.tolist()):
        ids[row, :length] = torch.tensor([BOS, *range(60, 58 + length), EOS])
    return ids


def changed(kind: Any, uniform: torch.Tensor) -> tuple[list[list[int]], list[int]]:
    ids, lengths = augment(captions(), LENGTHS, kind, uniform=uniform, vocabulary=VOCABULARY)
    words = []
    for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
        assert row[0] == BOS
        assert row[length - 1] == EOS
        assert all(token == PAD for token in row[length:]) or row[-1] == EOS
        words.append(row[1 : length - 1])
    return words, lengths.tolist()


def numbers(tokens: int) -> torch.Tensor:
    return torch.rand(5, tokens, 3, generator=torch.Generator().manual_seed(1))


def test_added_tokens_leave_the_words_in_order() -> None:
    words, lengths = changed("add", numbers(2))
    assert lengths == [4, 5, 7, 8, 8]
    for row, length in zip(words, LENGTHS.tolist(), strict=True):
        assert [token for token in row if token >= VOCABULARY] == list(range(60, 58 + length))
    assert sum(token < VOCABULARY for row in words for token in row) == 2 + 2 + 2 + 1


def test_repeated_tokens_are_the_captions_own() -> None:
    words, lengths = changed("repeat", numbers(2))
    assert lengths == [2, 5, 7, 8, 8]
    for row, length in zip(words, LENGTHS.tolist(), strict=True):
        assert set(row) == set(range(60, 58 + length))


def test_a_replaced_caption_keeps_nothing() -> None:
    words, lengths = changed("replace", numbers(4))
    assert lengths == [6] * 5
    assert all(len(row) == 4 and max(row) < VOCABULARY for row in words)
    assert len({tuple(row) for row in words}) == 5
    assert changed("replace", numbers(20))[1] == [8] * 5


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])
def test_each_number_has_its_meaning_up_to_the_ends(number: float) -> None:
    uniform = torch.full((5, 1, 3), number)
    token = min(int(number * VOCABULARY), VOCABULARY - 1)
    added, repeated, replaced = (changed(kind, uniform)[0] for kind in ("add", "repeat", "replace"))
    assert replaced == [[token]] * 5
    for row, length in enumerate(LENGTHS.tolist()[:4]):
        own = list(range(60, 58 + length))
        place = min(int(number * (length - 1)), length - 2)
        assert added[row] == [*own[:place], token, *own[place:]]
        if own:
            chosen = own[min(int(number * len(own)), len(own) - 1)]
            assert repeated[row] == [*own[:place], chosen, *own[place:]]


@pytest.mark.parametrize("kind", ["add", "replace", "repeat"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_caption_one_and_two_stay_as_many(kind: Any, count: int) -> None:
    ids, length = torch.tensor([[1, 5, 2, 0]]).repeat(count, 1), torch.full((count,), 3)
    found, lengths = augment(ids, length, kind, uniform=torch.full((count, 1, 3), 0.5), vocabulary=9)
    assert (found.shape, lengths.tolist()) == (ids.shape, [3 if kind == "replace" else 4] * count)
