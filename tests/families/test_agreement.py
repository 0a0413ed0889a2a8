"""Edits of one picture agree; look-alikes do not."""

from __future__ import annotations

import numpy as np
import pytest

from memtrain.errors import DataError
from memtrain.families.agreement import NOTHING, compare
from memtrain.families.looks import thumbnail
from memtrain.families.near_threshold import reference_threshold
from tests.families.pictures import EDITS, captioned, clip_art, spread

THRESHOLD = reference_threshold(0.01)


def scores(first: list, second: list) -> np.ndarray:
    pairs = np.stack([np.arange(len(first))] * 2, axis=1)
    return compare(np.stack([*map(thumbnail, first)]), np.stack([*map(thumbnail, second)]), pairs)


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_real_pictures_agree(edit: str) -> None:
    images = spread(40)
    assert (scores(images, [EDITS[edit](image) for image in images]) >= THRESHOLD).mean() >= 0.9


def test_flags_of_one_layout_do_not_agree() -> None:
    """Tricolours, ensigns and crosses: of some 150 flags hardly any two are taken for one."""
    flags = np.stack([*map(thumbnail, captioned("the flag of"))])
    assert len(flags) > 150
    first, second = np.triu_indices(len(flags), 1)
    some = np.random.default_rng(0).choice(len(first), 2000, replace=False)
    assert (compare(flags, flags, np.stack([first, second], axis=1)[some]) >= THRESHOLD).mean() < 0.002


@pytest.mark.parametrize(
    ("one", "other"), [("chad", "andorra,"), ("chad", "belgium"), ("australia,", "cook islands"), ("norway", "iceland")]
)
def test_two_flags_are_two_pictures(one: str, other: str) -> None:
    first = [image for image, caption in clip_art() if f"flag of {one}" in caption]
    second = [image for image, caption in clip_art() if f"flag of {other}" in caption]
    assert scores(first[:1], second[:1])[0] < THRESHOLD


def test_upside_down_and_unlike_pictures_are_dropped_or_low() -> None:
    images = spread(40)
    assert (scores(images, images[1:] + images[:1]) < THRESHOLD).all()
    assert (scores(images, images[1:] + images[:1]) == NOTHING).mean() > 0.5


def test_pictures_that_show_nothing_are_not_one() -> None:
    grey = [np.full((32, 32, 3), level, np.uint8) for level in (100, 120)]
    assert compare(np.stack(grey), np.stack(grey), np.array([[0, 1]]))[0] < THRESHOLD


def test_thumbnails_of_another_shape_are_refused() -> None:
    wrong = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(DataError, match="16, 16"):
        compare(wrong, wrong, np.zeros((1, 2), np.int64))
    assert (
        len(compare(np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8), np.zeros((0, 2), int))) == 0
    )
