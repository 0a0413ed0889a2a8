"""Running moments: merged, forgotten, of few observations, of values that are missing."""

import math

import pytest
import torch

from memtrain.functional.moments import DriftingMoments, Moments
from memtrain.functional.neurons import neuron_activation, neuron_z_score


def test_moments_are_plain_ones_within_the_window() -> None:
    values = torch.randn(30, 2, dtype=torch.float64) * 3 + 5
    moments = DriftingMoments(2, 2, window=64)
    for value in values:
        moments.update(1, value)
    torch.testing.assert_close(moments.mean[1], values.mean(0))
    z = moments.standardise(1, values[0])
    torch.testing.assert_close(z, (values[0] - values.mean(0)) / values.std(0))
    assert moments.standardise(0, values[0]).isnan().all(), "the other group has seen nothing"


def test_moments_pass_over_what_is_not_finite() -> None:
    moments, plain = DriftingMoments(1, 2, window=8), DriftingMoments(1, 2, window=8)
    for value in (1.0, 4.0, 2.0):
        plain.update(0, torch.tensor([value, value]))
        moments.update(0, torch.tensor([value, value]))
        moments.update(0, torch.tensor([torch.inf, torch.nan]))
    assert all(torch.equal(moments.state_dict()[name], kept) for name, kept in plain.state_dict().items())


def test_moments_follow_a_drifting_mean() -> None:
    moments = DriftingMoments(1, 1, window=16)
    for step in range(400):
        moments.update(0, torch.tensor([0.0 if step < 200 else 10.0]))
    assert moments.mean[0].item() == pytest.approx(10, abs=1e-3)


def test_a_quantity_that_was_not_observed_keeps_its_moments() -> None:
    values = torch.randn(20, 1, dtype=torch.float64)
    sparse, dense = DriftingMoments(1, 2, window=8), DriftingMoments(1, 1, window=8)
    for value in values:
        sparse.update(0, torch.tensor([1.0, math.nan]))
        sparse.update(0, torch.cat([torch.tensor([math.nan]), value]))
        dense.update(0, value)
    torch.testing.assert_close(sparse.mean[0, 1], dense.mean[0, 0])
    torch.testing.assert_close(sparse.square[0, 1], dense.square[0, 0])
    assert sparse.count.tolist() == [[20, 20]]


def test_a_spread_below_the_resolution_is_not_believed() -> None:
    moments = DriftingMoments(1, 2, window=8, resolution=torch.tensor([0.5, 0.01]))
    for _ in range(4):
        moments.update(0, torch.zeros(2))
    assert moments.standardise(0, torch.tensor([1.0, 1.0])).tolist() == pytest.approx([2.0, 100.0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_moments_of_few_observations_standardise_nothing_below_the_minimum(count: int) -> None:
    moments = DriftingMoments(2, 1, window=8, minimum=2)
    for value in (1.0, 3.0)[:count]:
        moments.update(0, torch.tensor([value]))
    groups = torch.zeros(count, dtype=torch.long)
    assert moments.standardise(groups, torch.zeros(count, 1)).shape == (count, 1)
    deviation = moments.deviation(0)
    assert deviation.isnan().all() if count < 2 else float(deviation) == pytest.approx(math.sqrt(2))


def test_moments_of_parts_merge_to_those_of_the_whole() -> None:
    values = 5 + torch.randn(11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged = (
        Moments.of(values[:0]).merge(Moments.of(values[:4])).merge(Moments.of(values[4:])).merge(Moments.of(values[:0]))
    )
    assert merged.count == 11
    torch.testing.assert_close(merged.mean, values.mean(0))
    torch.testing.assert_close(merged.std, values.std(0))
    assert Moments.of(values[:1]).std.tolist() == [0, 0, 0]
    assert Moments.of(values[:0]).merge(Moments.of(values[:0])).count == 0


def test_limited_moments_weigh_less_and_are_the_same() -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few = Moments.of(values).limited(10)
    assert few.count == 10
    assert torch.equal(few.mean, values.mean(0))
    torch.testing.assert_close(few.square / few.count, values.var(0, correction=0))
    assert Moments.of(values).limited(100).count == 40
    # Ten of ten observations move the mean halfway.
    torch.testing.assert_close(
        few.merge(Moments.of(values[:10] + 2)).mean, (values.mean(0) + values[:10].mean(0) + 2) / 2
    )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_moments_of_few_observations_have_a_deviation_from_two_on(count: int) -> None:
    values = torch.tensor([[1.0, 4.0], [3.0, 4.0]])[:count]
    moments = Moments.of(values)
    assert moments.std.tolist() == pytest.approx([2**0.5, 0.0] if count == 2 else [0.0, 0.0])
    merged = moments.merge(Moments.of(torch.zeros(0, 2)))
    assert (merged.count, merged.mean.tolist()) == (count, moments.mean.tolist())
    assert neuron_z_score(values, moments.mean.float(), moments.std.float()).isfinite().all()
    assert neuron_activation(torch.ones(count, 3, 2)).tolist() == [[1.0, 1.0]] * count


def test_several_observations_are_followed_as_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(4, (90,), generator=generator).tolist()
    values = torch.randn(90, 3, generator=generator, dtype=torch.float64)
    values[torch.rand(90, 3, generator=generator) < 0.1] = math.nan
    apart, together = (DriftingMoments(4, 3, window=8, minimum=3) for _ in range(2))
    expected = []
    for group, value in zip(groups, values, strict=True):
        expected.append(apart.standardise(group, value))
        apart.update(group, value)
    found = torch.cat([together.follow(groups[:50], values[:50]), together.follow(groups[50:], values[50:])])
    torch.testing.assert_close(found, torch.stack(expected), equal_nan=True)
    for name, part in together.state_dict().items():
        torch.testing.assert_close(part, apart.state_dict()[name])
    assert together.follow([], torch.zeros(0, 3)).shape == (0, 3)
