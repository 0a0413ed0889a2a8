"""The loss of a whole training set beside that of held-out samples."""

from __future__ import annotations

import math

import pytest
import torch

from memtrain.evidence.set_curve import FIRST, MOST, SetCurve


def test_a_window_is_the_mean_over_its_buckets_of_the_means_of_their_visits() -> None:
    curve = SetCurve(2, 3)
    curve.add([0, 0, 1, None], torch.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, math.nan], [99.0, 0.0]]), step=2)
    curve.add_heldout([2], torch.tensor([[-1.0, 0.0]]))
    (point,) = curve.points(0)
    assert (point.step, point.training, point.heldout) == (2, 5.0, -1.0)
    assert curve.points(1)[0].training == 0.0, "a value that is not known is left out"


def test_windows_of_a_long_run_are_put_together_and_nothing_is_lost() -> None:
    curve = SetCurve(1, 1)
    for step in range(10 * MOST * FIRST):
        curve.add([0], torch.tensor([[float(step)]]), step=step)
    points = curve.points(0)
    assert len(points) <= MOST and points[-1].step == 10 * MOST * FIRST - 1
    weights = curve.count[:, 0, 0, 0]
    means = torch.tensor([point.training for point in points], dtype=torch.float64)
    assert float((weights[weights > 0] * means).sum() / weights.sum()) == pytest.approx((10 * MOST * FIRST - 1) / 2)


def test_a_window_without_held_out_samples_has_none() -> None:
    curve = SetCurve(1, 1)
    curve.add([0], torch.tensor([[1.0]]), step=0)
    assert math.isnan(curve.points(0)[0].heldout)


def test_a_saved_state_goes_on() -> None:
    curve, again = SetCurve(1, 2), SetCurve(1, 2)
    curve.add([0, 1], torch.tensor([[1.0], [2.0]]), step=7)
    again.load_state_dict(curve.state_dict())
    for one in (curve, again):
        one.add([1], torch.tensor([[4.0]]), step=8)
    assert again.points(0) == curve.points(0)
