"""What a loop may call its samples."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from memtrain.errors import DataError
from memtrain.monitoring.batch_fields import sample_keys
from memtrain.monitoring.sample_names import SampleNames


@pytest.mark.parametrize(
    "keys", [["3", "5"], [3, 5], torch.tensor([3, 5]), np.array([3, 5]), (torch.tensor(3), torch.tensor(5))]
)
def test_names_and_numbers(keys: Any) -> None:
    assert SampleNames()(keys) == ["3", "5"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float32])
def test_content_names_samples_and_says_so_once(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    names, rows = SampleNames(), torch.tensor([[1, 2], [3, 4], [1, 2]]).to(dtype)
    with caplog.at_level(logging.WARNING):
        found = names(rows)
        assert names(list(rows)) == found
    assert found[0] == found[2] != found[1]
    assert caplog.text.count("hash of their content") == 1


@pytest.mark.parametrize("keys", [7, "abc", {"a": 1}, [None], None])
def test_what_names_nothing_is_refused(keys: Any) -> None:
    with pytest.raises(DataError, match="names no sample"):
        SampleNames()(keys)


@pytest.mark.parametrize(
    "key",
    [True, torch.tensor([True, False]), "\udcff", 10**5000, ""],
    ids=["bool", "bools", "surrogate", "long", "empty"],
)
def test_what_cannot_be_written_into_a_table_is_no_name(key: object) -> None:
    with pytest.raises(DataError, match=r"names no sample|cannot be written to a table"):
        SampleNames()(key if isinstance(key, torch.Tensor) else [key])
    if not isinstance(key, torch.Tensor):
        with pytest.raises(DataError):
            sample_keys({"key": [key]}, "key")
