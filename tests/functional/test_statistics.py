"""Running moments against torch, thresholds against coverage and scipy's quantiles."""

import math

import pytest
import torch
from scipy import stats

from memtrain.functional.statistics import (
    DriftingMoments,
    conformal_threshold,
    normal_threshold,
    robust_threshold,
    samples_needed,
)


def test_moments_are_plain_ones_within_the_window() -> None:
    values = torch.randn(30, 2, dtype=torch.float64) * 3 + 5
    moments = DriftingMoments(2, 2, window=64)
    for value in values:
        moments.update(1, value)
    torch.testing.assert_close(moments.mean[1], values.mean(0))
    z = moments.standardise(1, values[0])
    torch.testing.assert_close(z, (values[0] - values.mean(0)) / values.std(0))
    assert moments.standardise(0, values[0]).isnan().all(), "the other group has seen nothing"


def test_moments_follow_a_drifting_mean() -> None:
    moments = DriftingMoments(1, 1, window=16)
    for step in range(400):
        moments.update(0, torch.tensor([0.0 if step < 200 else 10.0]))
    assert moments.mean[0].item() == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.03, 33)])
def test_samples_needed(rate: float, needed: int) -> None:
    assert samples_needed(rate) == needed
    conformal_threshold(torch.arange(float(needed)), rate)
    if needed > 1:
        with pytest.raises(ValueError, match=f"at least {needed}"):
            conformal_threshold(torch.arange(float(needed - 1)), rate)


def test_conformal_threshold_keeps_the_stated_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 40, generator=generator).exp()
    exceeded = sum(float(row[39]) > conformal_threshold(row[:39], 0.05) for row in draws)
    assert exceeded / 4000 == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("count", [8, 20, 90])
def test_normal_threshold_is_the_student_prediction_interval(count: int) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    spread = float(scores.std()) * math.sqrt(1 + 1 / count)
    expected = float(scores.mean()) + stats.t.ppf(0.99, count - 1) * spread
    assert normal_threshold(scores, 0.01) == pytest.approx(expected, rel=0.02)


def test_robust_threshold_ignores_a_minority() -> None:
    scores = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    polluted = torch.cat([scores, torch.full((300,), 50.0, dtype=torch.float64)])
    assert robust_threshold(polluted, 0.01) == pytest.approx(stats.norm.ppf(0.99), abs=0.65)
