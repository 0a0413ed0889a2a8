"""Changed captions stay captions: BOS, words, one EOS, padding."""

from __future__ import annotations

import pytest
import torch

from memtrain.callbacks.caption_augmentation import CaptionAugmentation, augment
from memtrain.callbacks.mitigation import Flags
from memtrain.errors import ConfigurationError

BOS, EOS, PAD, VOCABULARY = 90, 91, 92, 50
LENGTHS = torch.tensor([2, 3, 5, 7, 8])


def captions() -> torch.Tensor:
    """Words 60, 61, ... so that a random token below 50 is told apart."""
    ids = torch.full((5, 8), PAD)
    for row, length in enumerate(LENGTHS.tolist()):
        ids[row, :length] = torch.tensor([BOS, *range(60, 58 + length), EOS])
    return ids


def changed(kind: str, tokens: int) -> tuple[list[list[int]], list[int]]:
    ids, lengths = augment(
        captions(), LENGTHS, kind, tokens, vocabulary=VOCABULARY, generator=torch.Generator().manual_seed(1)
    )
    words = []
    for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
        assert row[0] == BOS
        assert row[length - 1] == EOS
        assert all(token == PAD for token in row[length:]) or row[-1] == EOS
        words.append(row[1 : length - 1])
    return words, lengths.tolist()


def test_added_tokens_leave_the_words_in_order() -> None:
    words, lengths = changed("add", 2)
    assert lengths == [4, 5, 7, 8, 8]
    for row, length in zip(words, LENGTHS.tolist(), strict=True):
        assert [token for token in row if token >= VOCABULARY] == list(range(60, 58 + length))
    assert sum(token < VOCABULARY for row in words for token in row) == 2 + 2 + 2 + 1


def test_repeated_tokens_are_the_captions_own() -> None:
    words, lengths = changed("repeat", 2)
    assert lengths == [2, 5, 7, 8, 8]
    for row, length in zip(words, LENGTHS.tolist(), strict=True):
        assert set(row) == set(range(60, 58 + length))


def test_a_replaced_caption_keeps_nothing() -> None:
    words, lengths = changed("replace", 4)
    assert lengths == [6] * 5
    assert all(len(row) == 4 and max(row) < VOCABULARY for row in words)


def test_the_share_of_visits_and_the_flagged_ones() -> None:
    def share(flagged: bool, samples: str) -> float:
        mitigation = CaptionAugmentation("replace", probability=0.3, samples=samples, vocabulary=50)  # type: ignore[arg-type]
        total = 0
        for number in range(200):
            batch = {"input_ids": captions(), "prompt_length": LENGTHS}
            flags = torch.full((5,), flagged)
            mitigation.prepare(batch, Flags(flags, flags, torch.zeros(5)), tokenizer=None, number=number)
            total += int((batch["input_ids"] != captions()).any(dim=1).sum())
        return total / 1000

    assert share(False, "all") == pytest.approx(0.3, abs=0.05)
    assert share(True, "flagged") == pytest.approx(0.3, abs=0.05)
    assert share(False, "flagged") == 0.0


def test_batches_without_tokens_are_refused() -> None:
    none = torch.zeros(1, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match="do not cache text embeddings"):
        CaptionAugmentation().prepare({}, Flags(none, none, torch.zeros(1)), tokenizer=None, number=0)
    with pytest.raises(ConfigurationError, match="set vocabulary"):
        batch = {"input_ids": captions(), "prompt_length": LENGTHS}
        CaptionAugmentation().prepare(batch, Flags(none, none, torch.zeros(1)), tokenizer=None, number=0)
