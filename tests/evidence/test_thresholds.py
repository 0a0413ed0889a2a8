"""How many held-out samples a threshold and p-values need."""

import math

import pytest
import torch

from memtrain.errors import CalibrationError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.thresholds import Spending, apart_from_themselves, heldout_method
from memtrain.functional.statistics import MINIMUM_CALIBRATING, conformal_threshold, tail_threshold


def test_too_few_heldout_samples_are_refused_or_named() -> None:
    assert heldout_method(99, 0.01) == "order statistic"
    assert heldout_method(98, 0.01) == "tail bound"
    with pytest.raises(CalibrationError, match="7 held-out samples"):
        heldout_method(7, 0.01)
    with pytest.raises(CalibrationError, match="false_positive_rate=0"):
        Calibration(1, scored=slice(0, 1), memorized_when="low", buckets=1, false_positive_rate=0)


@pytest.mark.parametrize("count", [MINIMUM_CALIBRATING - 1, MINIMUM_CALIBRATING])
def test_p_values_need_as_many_heldout_samples_as_a_threshold(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=1)
    for step in range(40):
        calibration.add_heldout(
            [f"h{i}" for i in range(count)], [0] * count, torch.randn(count, 1, generator=generator)
        )
        calibration.add(["a"], [0], torch.full((1, 1), 9.0), step=step)
    known = count >= MINIMUM_CALIBRATING
    assert bool(calibration.p_values(["a"]).isfinite()) == known == math.isfinite(calibration.threshold)


def test_no_more_held_out_samples_than_the_rate_allows_are_ever_above_the_threshold_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    highest, spending, named = torch.zeros(59, dtype=torch.float64), Spending(), set()
    keys = [str(row) for row in range(59)]
    for step in range(40):
        highest = highest.maximum(torch.randn(59, generator=generator, dtype=torch.float64))
        found = spending.threshold(keys.__getitem__, highest, 0.05)
        assert found is not None
        if step == 0:
            assert found == conformal_threshold(highest, 0.05)
        named |= {key for key, score in zip(keys, highest.tolist(), strict=True) if score >= found}
    assert named == spending.named and len(named) == 3, "3 of 60"


def test_where_another_one_leads_the_threshold_lies_above_all() -> None:
    first, then = torch.arange(30.0, dtype=torch.float64), torch.arange(30.0, dtype=torch.float64)
    then[0] = 40.0
    spending, keys = Spending(), [str(row) for row in range(30)]
    assert spending.threshold(keys.__getitem__, first, 1 / 31) == 29
    assert spending.threshold(keys.__getitem__, then, 1 / 31) == tail_threshold(then, 1 / 31) > 40


def test_root_mean_squares_of_held_out_samples_are_too_low_by_their_own_part_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 9, 7, generator=generator, dtype=torch.float64)
    off = values - values[:, :8].mean(dim=1, keepdim=True)
    apart = off[:, 8].square().mean().sqrt() / off[:, :8].square().mean().sqrt()
    assert float(apart) == pytest.approx(apart_from_themselves(8), rel=0.01)
