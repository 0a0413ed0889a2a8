"""Activation and z-scores of value neurons."""

import torch

from memtrain.functional.neurons import neuron_activation, neuron_z_score


def test_activation_is_the_mean_magnitude_over_tokens() -> None:
    values = torch.tensor([[[1.0, -2.0], [3.0, 0.0], [-2.0, 4.0]]])
    torch.testing.assert_close(neuron_activation(values), torch.tensor([[2.0, 2.0]]))


def test_z_scores_are_distances_in_standard_deviations() -> None:
    activation = torch.tensor([[1.0, 5.0, 7.0]])
    z = neuron_z_score(activation, torch.tensor([2.0, 2.0, 7.5]), torch.tensor([0.5, 1.5, 0.0]))
    assert z.tolist() == [[2.0, 2.0, 0.0]]
    assert bool(z.isfinite().all())
