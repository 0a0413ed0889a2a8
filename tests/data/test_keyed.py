"""Names for the samples of any dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from memtrain.data.keyed import keyed
from memtrain.errors import DataError


class Rows(Dataset[Any]):
    """As Hugging Face's `datasets`: dicts, and several rows at once."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self.rows[index] for index in indices]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ({"__key__": "shard/1", "x": 1}, {"x": 2}, (3, 4))


def test_a_name_of_ones_own_goes_before_the_index() -> None:
    rows = [{"file_name": "a.png"}, {"__key__": "b"}, {"key": 7}, {"image": {"path": "c.png", "bytes": b""}}, {"x": 1}]
    names = [sample["key"] for sample in keyed(Rows(rows))]
    assert names == ["a.png", "b", "7", "c.png", "4"]
    assert rows[4] == {"x": 1}
    assert keyed(Rows(rows), field="name")[4] == {"x": 1, "name": "4"}


def test_loaders_fetch_named_samples_in_any_order() -> None:
    data = keyed(Rows([{"x": index} for index in range(6)]))
    loader: Any = DataLoader(data, batch_size=3, sampler=[5, 0, 3, 1, 4, 2])
    assert [batch["key"] for batch in loader] == [["5", "0", "3"], ["1", "4", "2"]]
    assert data[-1]["key"] == "5"


def test_tuples_become_dicts() -> None:
    data = keyed(TensorDataset(torch.arange(3), torch.ones(3)))
    assert data[1]["key"] == "1"
    assert data[1]["sample"][0] == 1


def test_streams() -> None:
    names = [sample["key"] for sample in keyed(Stream())]
    assert names == ["shard/1", "1", "2"]


def test_what_is_no_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="int is not a dataset"):
        keyed(3)
