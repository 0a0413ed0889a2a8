"""Repeats by number, by pattern and by folder."""

import pytest

from memtrain.data.repeats import repeats_of
from memtrain.errors import ConfigurationError

KEYS = ["10_dog/a.png", "10_dog/2_near/b.png", "cats/c.png", "d.jpg"]


def test_numbers_patterns_and_folders():
    assert repeats_of(KEYS, 3) == [3, 3, 3, 3]
    assert repeats_of(KEYS, {"*.jpg": 5, "10_dog/*": 2, "*b.png": 9}) == [2, 2, 1, 5]
    assert repeats_of(KEYS, "from_folders") == [10, 2, 1, 1]


@pytest.mark.parametrize("repeats", [0, "folders", {"*.gif": 2}, {"d.jpg": 0}])
def test_what_cannot_be_meant_is_refused(repeats):
    with pytest.raises(ConfigurationError, match="Remedy"):
        repeats_of(KEYS, repeats)
