"""Tokens of all captions: the same in stretches as at once; kept for the next start, or made anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memtrain.data import token_table as module
from memtrain.data.token_table import token_table

TEXTS = [f"caption {number}" for number in range(50)]


class Words:
    """Numbers of words; counts how many captions it was asked for."""

    def __init__(self, more: int = 0, *, longest: bool = False) -> None:
        self.more, self.longest, self.asked = more, longest, 0

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        self.asked += len(captions)
        numbers = [int(text.split()[-1]) + self.more for text in captions]
        width = max(numbers) + 1 if self.longest else 3
        return {
            "input_ids": torch.stack([torch.full((width,), number) for number in numbers]),
            "prompt_length": torch.tensor([number % 7 for number in numbers]),
            "mask": torch.tensor([number % 2 == 0 for number in numbers]),
        }


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 7)
    monkeypatch.setattr(module, "MANY", 10)


@pytest.mark.parametrize("more", [0, 40_000, 2**40])
def test_stretches_make_what_one_call_makes(more: int, tmp_path: Path) -> None:
    whole = Words(more)(TEXTS)
    for folder in (None, tmp_path):
        found = token_table(TEXTS, Words(more), folder=folder)
        for place in (0, 13, 49):
            row = found.row(place)
            assert all(torch.equal(row[name], whole[name][place]) for name in whole)
            assert [one.dtype for one in row.values()] == [one.dtype for one in whole.values()]
    assert found["prompt_length"].dtype == torch.int16, "they are kept small"


def test_a_tokenizer_that_pads_to_the_longest_is_asked_once_for_all() -> None:
    found = token_table(TEXTS, Words(longest=True))
    assert found["input_ids"].shape == (50, 50)


def test_the_next_start_reads_them(tmp_path: Path) -> None:
    token_table(TEXTS, Words(), folder=tmp_path)
    again = Words()
    found = token_table(TEXTS, again, folder=tmp_path)
    assert again.asked == module.COMPARED or again.asked <= len(TEXTS) + 1
    assert torch.equal(found["input_ids"].long(), Words()(TEXTS)["input_ids"])
    assert len(list(tmp_path.iterdir())) == 1


def test_other_captions_and_another_tokenizer_are_another_table(tmp_path: Path) -> None:
    for texts, tokens in ((TEXTS, Words()), (TEXTS[:-1], Words()), (TEXTS, Words(1))):
        found = token_table(texts, tokens, folder=tmp_path)
        assert torch.equal(found["input_ids"].long(), tokens(texts)["input_ids"])
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["input_ids.npy", "about.json"])
def test_a_spoilt_table_is_made_anew(name: str, tmp_path: Path) -> None:
    token_table(TEXTS, Words(), folder=tmp_path)
    (place,) = tmp_path.iterdir()
    (place / name).write_bytes(b"\x93NUMPY nothing")
    found = token_table(TEXTS, Words(), folder=tmp_path)
    assert torch.equal(found["input_ids"].long(), Words()(TEXTS)["input_ids"])
