"""Losses that are handed over: what the host makes of the denoiser's output, and in which parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.functional.diffusion import clean_latents, noisy_and_target
from memtrain.monitoring.loss_route import carried
from memtrain.monitoring.sample_losses import sample_losses


@pytest.mark.parametrize(
    "made",
    [
        lambda x: x,
        lambda x: x.chunk(2)[1],
        lambda x: -x * torch.tensor([0.1, 0.7, 1.3, 2.0]).view(4, 1, 1, 1) + 5,
        lambda x: x.chunk(2, dim=1)[0].permute(0, 2, 3, 1).flatten(1),
        lambda x: x.double(),
    ],
    ids=["itself", "rows", "preconditioned", "unpacked", "cast"],
)
def test_a_change_of_the_output_is_carried_over_exactly(made: Callable[[Tensor], Tensor]) -> None:
    output, other = torch.randn(2, 4, 4, 3, 3)
    output.requires_grad_(True)
    prediction = made(output)
    change = carried(prediction, output, other - output.detach())
    torch.testing.assert_close(prediction.detach() + change, made(other), check_dtype=False)
    # The graph is still there for the host.
    prediction.sum().backward()


def test_weights_of_samples_are_told_from_weights_of_elements() -> None:
    prediction, target = torch.randn(2, 3, 4, 5, 5)
    plain = F.mse_loss(prediction, target, reduction="none")
    for shape in ((3,), (3, 1, 1, 1)):
        losses, factor = sample_losses(prediction, target, weights=torch.arange(3.0).view(shape))
        assert torch.equal(losses, plain.flatten(1).mean(1))
        assert factor is not None
        assert torch.equal(factor, torch.arange(3.0))
    for shape in ((3, 1, 5, 5), (5, 5), (3, 4, 5, 5)):
        mask = torch.rand(shape)
        losses, factor = sample_losses(prediction, target, weights=mask)
        assert factor is None
        torch.testing.assert_close(losses, (mask * plain).flatten(1).mean(1))
    with pytest.raises(DataError, match="do not fit losses"):
        sample_losses(prediction, target, weights=torch.ones(4, 2))
    with pytest.raises(DataError, match="do not fit losses"):
        sample_losses(prediction, target, weights=torch.ones(3, 1, 5, 5), criterion=lambda x, y: x.flatten(1).mean(1))


def test_losses_are_full_precision_and_per_sample() -> None:
    prediction, target = torch.randn(2, 3, 4).bfloat16()
    assert sample_losses(prediction, target)[0].dtype == torch.float32
    for criterion in (F.mse_loss, lambda x, y: x[:1]):
        with pytest.raises(ConfigurationError, match="for 3 samples"):
            sample_losses(prediction, target, criterion=criterion)
    with pytest.raises(ConfigurationError, match="criterion='rmse'"):
        sample_losses(prediction, target, criterion="rmse")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_clean_latents_come_back(kind: str) -> None:
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    level = torch.tensor([0.1, 0.5, 0.9])
    noisy, target = noisy_and_target(latents, noise, level, prediction_type=kind)
    torch.testing.assert_close(clean_latents(noisy, target, level, prediction_type=kind), latents, atol=1e-4, rtol=1e-4)
