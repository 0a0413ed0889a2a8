"""The files of a search, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from memtrain.errors import ConfigurationError
from memtrain.localization.found import Found
from memtrain.localization.results import (
    Localization,
    load_masks,
    open_search,
    prompt_file,
    read_known,
    save_masks,
    write_found,
)
from memtrain.models.neuron_mask import NeuronMask

SEARCH = {"settings": {"factor": 0.5}, "threshold": 0.4, "sites": ["a", "b"]}
COST = {"calls": 3, "images": 12, "seconds": 0.5}
NEURONS = Found(
    prompt="über/x", similarity=0.9, kept_seeds=2, initial=((3, 1, 3), (0,)), refined=((3, 3), ()), score=0.1, **COST
)
NONE = Found(prompt="plain", similarity=0.2, kept_seeds=0, **COST)


def test_a_localization_is_its_masks_and_a_table(tmp_path: Path) -> None:
    both = Localization((NEURONS, NONE), ("a", "b"), SEARCH)
    assert list(both) == ["über/x"] and len(both) == 1
    assert both["über/x"].channels == {"a": [3]} and both["über/x"].factor == 0.5
    row = both.table.to_pylist()[0]
    assert (row["initial_candidates"], row["initial_neurons"], row["refined_neurons"]) == (4, 3, 1)
    assert row["refined_per_layer"] == [1, 0] and row["memorized"] is True
    for found in (NEURONS, NONE):
        write_found(tmp_path, found)
    open_search(tmp_path, SEARCH)
    loaded = Localization.load(tmp_path)
    loaded.save(tmp_path)
    assert set(loaded.found) == {NEURONS, NONE}
    assert pq.read_table(tmp_path / "localization.parquet").num_rows == 2
    assert load_masks(tmp_path / "masks.safetensors")["über/x"].factor == 0.5
    assert read_known(tmp_path, ["plain", "unknown"]) == {"plain": NONE}


def test_masks_unite() -> None:
    other = Found(prompt="y", similarity=0.9, kept_seeds=2, refined=((1,), (2,)), **COST)
    union = Localization((NEURONS, other), ("a", "b"), SEARCH).union()
    assert union is not None and union.channels == {"a": [1, 3], "b": [2]}


def test_no_masks_are_a_file_too(tmp_path: Path) -> None:
    save_masks({}, tmp_path / "m.safetensors")
    assert load_masks(tmp_path / "m.safetensors") == {}


def test_what_something_else_wrote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no search"):
        Localization.load(tmp_path)
    NeuronMask({"a": [1]}).save(tmp_path / "one.safetensors")
    with pytest.raises(ConfigurationError, match="holds no masks"):
        load_masks(tmp_path / "one.safetensors")
    path = prompt_file(tmp_path, "p")
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="delete the file"):
        read_known(tmp_path, ["p"])
