"""Some samples come in the batches in which all would, and nothing else is read."""

from __future__ import annotations

from typing import Any, cast

import torch

from memtrain.data.dataset import CaptionedImages
from memtrain.data.some_samples import SomeSamples


class Shaped:
    """Ten samples, the odd ones of another shape."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def by_shape(self) -> list[list[int]]:
        return [list(range(0, 10, 2)), list(range(1, 10, 2))]

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.read.append(row)
        return {"key": str(row), "latents": torch.zeros(1, 1 + row % 2)}


def some(rows: list[int] | None, part: tuple[int, int] = (0, 1)) -> SomeSamples:
    return SomeSamples(cast(CaptionedImages, Shaped()), 2, rows=rows, part=part)


def test_batches_are_those_of_all_samples_less_what_is_not_wanted() -> None:
    assert some(None).batches == [[0, 2], [4, 6], [8], [1, 3], [5, 7], [9]]
    assert some([2, 5, 6, 4, 7]).batches == [[2], [4, 6], [5, 7]]
    assert some([]).batches == []


def test_parts_are_dealt_out_in_turn_and_read_alone() -> None:
    parts = [some([0, 1, 2, 3, 8, 9], (number, 2)) for number in (0, 1)]
    assert [part.batches for part in parts] == [[[0, 2], [1, 3]], [[8], [9]]]
    assert [part["key"] for part in (parts[1][0], parts[1][1])] == [["8"], ["9"]]
    assert cast(Any, parts[1].dataset).read == parts[1].rows == [8, 9]
