"""How many held-out samples a threshold and p-values need."""

import math

import pytest
import torch

from memtrain.errors import CalibrationError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.thresholds import heldout_method
from memtrain.functional.statistics import MINIMUM_CALIBRATING


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
