import math

import pytest
import torch

from memtrain.evaluation.measures.copying.calibration import PLAIN, calibrate, nearest_others, rate_bound
from memtrain.evaluation.measures.edits import EDITS

from .test_base import Brightness, OnCandidates, flat


def brightened(image, chance):
    return image.point(lambda value: min(255, value + 40))


def test_the_threshold_lies_just_above_what_the_stated_share_of_unseen_prompts_stays_below():
    null = -torch.arange(1.0, 100.0)
    found = calibrate(Brightness(), null, rate=0.05, copied=flat(0), training=flat(0, 100), edits={})
    assert int((null.double() >= found.threshold).sum()) == 4
    assert found.threshold == pytest.approx(-5.0)
    assert (found.heldout, found.false_positive_rate) == (99, 0.05)


@pytest.mark.parametrize(("heldout", "above"), [(99, 1), (60, 3), (19, 1)])
def test_the_bound_of_the_rate_is_the_quantile_of_the_order_statistic(heldout, above):
    bound = rate_bound(heldout, above=above)
    highest = torch.rand(200_000, heldout, generator=torch.Generator().manual_seed(0)).topk(above, dim=1).values[:, -1]
    assert float((1 - highest).quantile(0.95)) == pytest.approx(bound, rel=0.03)
    if above == 1:
        assert bound == pytest.approx(1 - 0.05 ** (1 / heldout))


def test_power_says_which_edits_hide_a_copy():
    copied = flat(10, 60, 110)
    found = calibrate(
        Brightness(),
        torch.full((99,), -20.0),
        rate=0.01,
        copied=copied,
        training=copied,
        edits={"brighter": brightened},
    )
    assert found.sees
    assert found.power[PLAIN]["found"] == 3
    assert found.power["brighter"]["found"] == 0
    assert found.edited_share == 0.0


def test_copies_are_as_good_as_the_model_can_make_them() -> None:
    """A model that darkens everything by forty levels makes no copy that this measure would find."""
    copied = flat(60, 110)
    settings = {"rate": 0.01, "training": copied, "edits": {}}
    null = torch.full((99,), -20.0)
    assert calibrate(Brightness(), null, copied=copied, rendered=copied - 10, **settings).sees
    assert not calibrate(Brightness(), null, copied=copied, rendered=copied - 40, **settings).sees


def test_a_measure_that_finds_no_plain_copy_says_so():
    found = calibrate(Brightness(), torch.zeros(99), rate=0.01, copied=flat(10, 60), training=flat(10, 60), edits={})
    assert not found.sees
    assert found.said()["sees"] is False


def test_files_of_one_picture_are_not_each_others_neighbours():
    training, family = flat(0, 2, 50, 90), torch.tensor([0, 0, 1, 2])
    for measure in (Brightness(), OnCandidates()):
        found = nearest_others(measure, training, family=family)
        assert sorted(found.tolist()) == [-50.0, -40.0, -40.0]
    calibration = calibrate(Brightness(), torch.zeros(0), rate=None, copied=training, training=training, family=family)
    assert calibration.false_positive_rate is None
    assert calibration.rate_bound is None
    assert calibration.train_to_train["n"] == 3
    assert set(calibration.power) == {PLAIN, *EDITS}


def test_one_picture_has_no_neighbours():
    found = calibrate(Brightness(), torch.zeros(0), rate=None, copied=flat(1), training=flat(1), edits={})
    assert math.isinf(found.threshold)
    assert not found.sees
