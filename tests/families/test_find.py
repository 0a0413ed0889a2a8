"""The table of families, from real images and captions."""

from __future__ import annotations

import numpy as np
import pytest

from memtrain.errors import DataError
from memtrain.families.find import find_families
from tests.families.pictures import EDITS, looks, spread

FIVE = spread(5)


def test_equal_pixels_near_copies_and_captions_come_together() -> None:
    images = [FIVE[0], FIVE[1], FIVE[0].copy(), EDITS["mirror"](FIVE[1]), FIVE[2], EDITS["mirror"](FIVE[1])]
    captions = ["A dog", "a cat", "a cat!", "another", "", ""]
    found = find_families(list("abcdef"), captions, looks(images))
    families = found.families
    assert [families.picture(key) for key in "abcdef"] == list("ababeb")
    assert families.picture_members("b") == ("b", "d", "f")
    assert families.reason == {"c": "exact", "d": "near", "f": "exact"}
    assert families.similarity["c"] == 1
    assert found.threshold < families.similarity["d"] < 1
    assert [families.caption(key) for key in "abcdef"] == list("abbdef")
    assert (found.false_merge_rate, found.calibrated_on) == (0.01, 0)
    assert "embedded" in found.rests_on


def test_samples_that_stand_alone_are_left_out() -> None:
    found = find_families(list("abcde"), ["one", "two", "three", "four", "five"], looks(FIVE)).families
    assert (found.pictures, found.captions, found.similarity, found.reason) == ({}, {}, {}, {})
    assert find_families([], [], looks([])).families.pictures == {}


def test_the_search_is_an_argument() -> None:
    images = [*FIVE, EDITS["mirror"](FIVE[0])]

    def blind(descriptors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)

    assert find_families(list("abcdef"), [""] * 6, looks(images)).families.pictures == {"a": "a", "f": "a"}
    assert find_families(list("abcdef"), [""] * 6, looks(images), search=blind).families.pictures == {}


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(DataError, match="1 different"):
        find_families(["a", "a"], ["", ""], looks(FIVE[:2]))
    with pytest.raises(DataError, match="3 captions"):
        find_families(["a", "b"], [""] * 3, looks(FIVE[:2]))
