"""Near copies of real pictures are found, and look-alikes are left apart, whatever share of the data are copies."""

from __future__ import annotations

import numpy as np
import pytest

from memtrain.errors import DataError
from memtrain.families.near import find_near
from tests.families.pictures import EDITS, clip_art, looks, spread

LIGHT = [EDITS[name] for name in ("jpeg", "crop", "colour", "shift")]


def quality(names: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Precision and recall of pairs."""
    found, true = (values[:, None] == values for values in (names, truth))
    for same in (found, true):
        np.fill_diagonal(same, False)
    return (found & true).sum() / max(1, found.sum()), (found & true).sum() / max(1, true.sum())


def copies(count: int, each: int) -> tuple[list, np.ndarray]:
    """Edits of pictures all over the collection, two edits on top of each other every third time."""
    images, truth = [], []
    for number, image in enumerate(spread(count)):
        for at in range(each):
            edited = LIGHT[at % 4](image)
            images.append(LIGHT[(at + 1) % 4](edited) if at % 3 == 2 else edited)
            truth.append(number)
    return images, np.array(truth)


def test_copies_by_every_edit_among_others() -> None:
    """Of 150 pictures 120 have one copy each, by eight edits in turn."""
    images = spread(150)
    seen = looks([*images, *(list(EDITS.values())[number % 8](images[number]) for number in range(120))])
    found = find_near(seen.descriptors, seen.thumbnails)
    joined = found.names[150:] == found.names[:120]
    assert joined.mean() >= 0.93
    for edit in range(8):
        assert joined[edit::8].mean() >= 0.8, list(EDITS)[edit]
    assert found.threshold.pictures >= 100


def test_the_whole_collection_merges_one_picture_in_a_hundred_or_so() -> None:
    """Every picture is there once; but among them are a few that differ in a line."""
    seen = looks([image for image, _ in clip_art()])
    found = find_near(seen.descriptors, seen.thumbnails)
    merged = np.isfinite(found.similarity).sum()
    assert 0 < merged <= 0.02 * len(seen.hashes)
    assert (found.similarity[np.isfinite(found.similarity)] > 0.3).all()


def test_most_files_are_copies_of_ten_pictures() -> None:
    """62 % of 323 files."""
    others = [image for image, _ in clip_art()[3::10]]
    images, truth = copies(10, 20)
    seen = looks([*others, *images])
    found = find_near(seen.descriptors, seen.thumbnails)
    precision, recall = quality(found.names, np.concatenate([np.arange(len(others)) + 100, truth]))
    assert precision >= 0.97
    assert recall >= 0.9


def test_all_files_are_copies() -> None:
    images, truth = copies(8, 24)
    seen = looks(images)
    found = find_near(seen.descriptors, seen.thumbnails)
    precision, recall = quality(found.names, truth)
    assert precision == 1
    assert recall >= 0.9
    assert found.threshold.pictures == 0


def test_twelve_pictures_are_twelve_and_a_thirteenth_is_a_copy() -> None:
    images = spread(12)
    seen = looks([*images, EDITS["crop"](images[4])])
    found = find_near(seen.descriptors, seen.thumbnails)
    assert found.names.tolist() == [*range(12), 4]
    assert np.isfinite(found.similarity).tolist() == [at in (4, 12) for at in range(13)]
    assert found.similarity[4] == found.similarity[12] > found.threshold.similarity


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_or_none(count: int) -> None:
    seen = looks(spread(2)[:count])
    found = find_near(seen.descriptors, seen.thumbnails)
    assert found.names.tolist() == list(range(count))


def test_broken_descriptors_are_refused() -> None:
    seen = looks(spread(3))
    with pytest.raises(DataError, match="2 of 3"):
        find_near(np.array([[1.0], [np.nan], [1.0]], np.float32), seen.thumbnails)
    with pytest.raises(DataError, match="for 3 thumbnails"):
        find_near(seen.descriptors[:2], seen.thumbnails)
