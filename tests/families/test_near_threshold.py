"""The threshold follows the data, and says what it rests on."""

from __future__ import annotations

import numpy as np
import pytest

from memtrain.errors import ConfigurationError
from memtrain.families.near_threshold import ENOUGH, NearThreshold, calibrate, reference_threshold
from memtrain.families.search import ExactSearch
from tests.families.pictures import looks, spread


def test_a_lower_rate_asks_for_more() -> None:
    assert reference_threshold(0.001) > reference_threshold(0.01) > reference_threshold(0.1)
    assert reference_threshold(0.001) - reference_threshold(0.01) == pytest.approx(2.2 * np.log(10))


@pytest.mark.parametrize("rate", [0, -0.1, 0.5, float("nan")])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="false_merge_rate"):
        reference_threshold(rate)


def test_similarity_is_monotone_and_between_0_and_1() -> None:
    found = NearThreshold.similarity_of(np.array([-20, 0, 3, 12], np.float32))
    assert found[1] == 0.5
    assert (np.diff(found) > 0).all()
    assert found[0] > 0
    assert found[-1] < 1


def test_data_whose_pictures_differ_less_need_a_higher_threshold() -> None:
    """Every picture faded towards one and the same: what tells them apart gets less than what they share."""
    images = spread(160)
    plain = looks(images)
    shared = plain.thumbnails[7].astype(float)
    alike = (0.45 * plain.thumbnails + 0.55 * shared).astype(np.uint8)
    pairs, _ = ExactSearch()(plain.descriptors, -1)
    own = np.arange(len(images))
    threshold = calibrate(plain.thumbnails, pairs, own, false_merge_rate=0.01)
    higher = calibrate(alike, pairs, own, false_merge_rate=0.01)
    assert threshold.pictures >= ENOUGH
    assert higher.score > threshold.score
    assert "upside down" in threshold.rests_on


def test_copies_do_not_move_it() -> None:
    """Ten pictures of 160 with forty copies each that a first look did find, or did not find at all."""
    images = spread(160)
    plain = looks(images)
    several = np.concatenate([np.arange(160), np.repeat(np.arange(10), 40)])
    pairs, _ = ExactSearch()(plain.descriptors[several], -1)
    alone = calibrate(plain.thumbnails, ExactSearch()(plain.descriptors, -1)[0], np.arange(160), false_merge_rate=0.01)
    for rough in (several, np.arange(len(several))):
        found = calibrate(plain.thumbnails[several], pairs, rough, false_merge_rate=0.01)
        assert found.score == pytest.approx(alone.score, abs=1.2)


def test_too_few_pictures_leave_the_embedded_ones_to_decide() -> None:
    plain = looks(spread(12))
    found = calibrate(plain.thumbnails, ExactSearch()(plain.descriptors, -1)[0], np.arange(12), false_merge_rate=0.02)
    assert found == NearThreshold(reference_threshold(0.02), 0.02, 0)
    assert "embedded" in found.rests_on
