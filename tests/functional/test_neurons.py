"""Activation and z-scores of value neurons."""

import pytest
import torch

from memtrain.functional.neurons import Moments, neuron_activation, neuron_z_score, scale_neurons


def test_activation_is_the_mean_magnitude_over_tokens() -> None:
    values = torch.tensor([[[1.0, -2.0], [3.0, 0.0], [-2.0, 4.0]]])
    torch.testing.assert_close(neuron_activation(values), torch.tensor([[2.0, 2.0]]))


def test_z_scores_are_distances_in_standard_deviations() -> None:
    activation = torch.tensor([[1.0, 5.0, 7.0]])
    z = neuron_z_score(activation, torch.tensor([2.0, 2.0, 7.5]), torch.tensor([0.5, 1.5, 0.0]))
    assert z.tolist() == [[2.0, 2.0, 0.0]]
    assert bool(z.isfinite().all())


def test_scaling_touches_the_chosen_rows_alone_and_stops_their_gradient() -> None:
    values = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scale, rows = torch.tensor([1.0, 0.0, 0.5, 1.0]), torch.tensor([True, False, True])
    scaled = scale_neurons(values, scale, rows=rows)
    assert torch.equal(scaled[1], values[1])
    assert torch.equal(scaled[[0, 2]], values[[0, 2]] * scale)
    assert torch.equal(scale_neurons(values, scale), values * scale)
    scaled.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.where(rows.view(-1, 1, 1), scale, 1.0).expand(3, 2, 4))


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
