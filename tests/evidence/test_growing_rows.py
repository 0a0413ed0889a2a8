"""Arrays that grow: what was in them stays, and rows that are new are as they were announced."""

from __future__ import annotations

import torch

from memtrain.evidence.growing_rows import LEAST, GrowingRows


def test_rows_stay_as_arrays_grow_and_new_ones_are_filled() -> None:
    arrays = GrowingRows()
    arrays.add("value", -1.0, width=2)
    for count in (1, LEAST, LEAST + 1, 5 * LEAST):
        first = arrays.count
        arrays.grow(count)
        assert arrays["value"].shape == (count, 2)
        assert (arrays["value"][first:] == -1).all()
        arrays["value"][first:] = torch.arange(first, count)[:, None].double()
    assert arrays["value"][:, 1].tolist() == list(range(5 * LEAST))


def test_an_array_that_comes_later_has_as_many_rows() -> None:
    arrays = GrowingRows()
    arrays.add("first", 0.0)
    arrays.grow(100)
    arrays.add("second", 0, dtype=torch.bool)
    assert arrays["second"].tolist() == [False] * 100
    assert list(arrays) == ["first", "second"] and "third" not in arrays
    assert arrays.bytes_per_row() == 9


def test_the_last_row_takes_the_place_of_one_that_goes_and_leaves_nothing_behind() -> None:
    arrays = GrowingRows()
    arrays.add("value", 7.0)
    arrays.grow(3)
    arrays["value"][:] = torch.tensor([0.0, 1.0, 2.0])
    arrays.remove(0)
    assert arrays["value"].tolist() == [2.0, 1.0]
    arrays.grow(3)
    assert arrays["value"].tolist() == [2.0, 1.0, 7.0]
    arrays.clear()
    arrays.grow(2)
    assert arrays["value"].tolist() == [7.0, 7.0]
