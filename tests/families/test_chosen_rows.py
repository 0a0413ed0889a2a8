"""Rows that are read as they are asked for, and families that are the same with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memtrain.families.chosen_rows import ChosenRows
from memtrain.families.find import find_families
from memtrain.families.look_parts import ALL, Looks, StoredLooks
from memtrain.families.stored_arrays import create_arrays


def test_it_reads_like_the_array_of_these_rows() -> None:
    whole, rows = np.arange(60.0).reshape(10, 3, 2), np.array([7, 2, 9])
    chosen = ChosenRows(lambda: whole, rows)
    assert (len(chosen), chosen.shape, chosen.ndim, chosen.dtype) == (3, (3, 3, 2), 3, whole.dtype)
    for at in (slice(1, None), np.array([2, 0]), np.array([-1]), np.array([[0, 1], [2, 2]])):
        np.testing.assert_array_equal(chosen[at], whole[rows][at])
    np.testing.assert_array_equal(np.ascontiguousarray(chosen), whole[rows])


def test_families_of_a_file_are_those_of_the_same_looks_in_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    count = 120
    descriptors = random.standard_normal((count, 16)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    looks = Looks(
        np.arange(count),
        random.integers(0, 256, (count, 32), dtype=np.uint8),
        descriptors,
        np.kron(random.integers(0, 200, (count, 8, 8, 3), dtype=np.uint8), np.ones((1, 4, 4, 1), np.uint8)),
        np.full((count, 2), 32, np.int32),
        {},
    )
    looks.hashes[5] = looks.hashes[3]
    looks.descriptors[9], looks.thumbnails[9] = looks.descriptors[8], looks.thumbnails[8] + 30
    arrays = looks.arrays()
    stored = create_arrays(tmp_path / ALL, {name: (str(one.dtype), one.shape) for name, one in arrays.items()})
    for name, one in arrays.items():
        stored[name][:] = one
    keys = [f"{number:03}" for number in range(count)]
    found = [
        find_families(keys, [""] * count, given, engine=engine)
        for given, engine in ((looks, None), (StoredLooks(tmp_path / ALL, {}, 0.0), Elsewhere()))
    ]
    assert found[0].families.pictures == {"003": "003", "005": "003", "008": "008", "009": "008"}
    for other in found[1:]:
        assert other.families.pictures == found[0].families.pictures
        assert other.families.similarity == found[0].families.similarity
        assert other.threshold == found[0].threshold


class Elsewhere:
    """An engine that is given values, not views of files."""

    def share(self, value):
        assert isinstance(value, np.ndarray)
        return value

    def map(self, function, items, *, shared=()):
        return (function(*shared, item) for item in items)
