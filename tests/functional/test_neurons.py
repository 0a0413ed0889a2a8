"""Activation and z-scores of value neurons."""

import torch

from memtrain.functional.neurons import neuron_activation, neuron_z_score, scale_neurons


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
