"""Losses, weights, and the gradient gate against autograd and hand-written re-weighting."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from memtrain.functional.diffusion import (
    gate_gradient,
    loss_from_gradient,
    min_snr_weight,
    noise_slope,
    noisy_and_target,
    per_sample_mse,
    predicted_noise,
    signal_to_noise_ratio,
)


@pytest.mark.parametrize("scale", [1.0, 0.25, 1024.0])
def test_each_loss_is_recovered_from_the_gradient_of_the_batch_mean(scale: float) -> None:
    prediction, target = torch.randn(5, 4, 3, 3, requires_grad=True), torch.randn(5, 4, 3, 3)
    (gradient,) = torch.autograd.grad(scale * F.mse_loss(prediction, target), prediction)
    torch.testing.assert_close(loss_from_gradient(gradient, scale), per_sample_mse(prediction, target).detach())


def test_the_gate_is_the_gradient_of_the_re_weighted_mean() -> None:
    parameter = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    inputs, target = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad((weights * ((inputs @ parameter - target) ** 2).mean(1)).mean(), parameter)
    prediction = inputs @ parameter
    prediction.register_hook(lambda gradient: gate_gradient(gradient, weights))
    (gated,) = torch.autograd.grad(F.mse_loss(prediction, target), parameter)
    torch.testing.assert_close(gated, expected)


def test_a_weight_of_zero_stops_non_finite_gradients() -> None:
    gradient = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]])
    torch.testing.assert_close(
        gate_gradient(gradient, torch.tensor([1.0, 0.0])), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    )


def test_min_snr_weights() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.01])
    snr = signal_to_noise_ratio(alphas, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(snr, torch.tensor([99.0, 1.0, 1 / 99]))
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "epsilon"), torch.tensor([5 / 99, 1.0, 1.0]))
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "v_prediction"), torch.tensor([0.05, 0.5, 0.01]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_predicted_noise_is_the_noise_of_a_perfect_prediction(kind):
    clean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alpha = 0.3
    latents = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    perfect = {"epsilon": noise, "v_prediction": alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean, "sample": clean}[kind]
    found = predicted_noise(perfect, latents, alpha_cumprod=alpha, prediction_type=kind)
    torch.testing.assert_close(found, noise)
    moved = predicted_noise(perfect + 1, latents, alpha_cumprod=alpha, prediction_type=kind)
    slope = noise_slope(alpha_cumprod=alpha, prediction_type=kind)
    torch.testing.assert_close(moved - found, torch.full_like(found, slope), atol=1e-5, rtol=1e-4)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'flow'"):
        noise_slope(alpha_cumprod=0.5, prediction_type="flow")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_is_shown_and_asked_is_what_diffusers_schedulers_say(kind: str) -> None:
    scheduler, timesteps = DDPMScheduler(), torch.tensor([3, 500, 990])
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    level = scheduler.alphas_cumprod[timesteps]
    noisy, target = noisy_and_target(latents, noise, level, prediction_type=kind)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(target, {"epsilon": noise, "v_prediction": velocity, "sample": latents}[kind])


def test_a_flow_goes_straight_from_image_to_noise() -> None:
    latents, noise = torch.randn(2, 4), torch.randn(2, 4)
    noisy, target = noisy_and_target(latents, noise, torch.tensor([0.0, 0.75]), prediction_type="flow_prediction")
    torch.testing.assert_close(noisy, torch.stack([latents[0], latents[1] + 0.75 * (noise[1] - latents[1])]))
    torch.testing.assert_close(target, noise - latents)


def test_another_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="score"):
        noisy_and_target(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), prediction_type="score")


def test_half_precision_is_noised_as_much_as_single() -> None:
    """At ᾱ = 0.998 the noise is 0.045; rounded to bf16 before the subtraction it would be 0.0625."""
    latents, noise, level = torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.998])
    options = {"prediction_type": "epsilon"}
    exact, _ = noisy_and_target(latents, noise, level, **options)
    half, _ = noisy_and_target(latents.bfloat16(), noise.bfloat16(), level, **options)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_losses_of_no_sample_one_and_two_are_read_from_the_gradient(count: int) -> None:
    prediction, target = torch.randn(count, 4, requires_grad=True), torch.randn(count, 4)
    losses = per_sample_mse(prediction, target)
    assert losses.shape == (count,)
    gradient = torch.autograd.grad(losses.sum() / max(count, 1), prediction)[0]
    torch.testing.assert_close(loss_from_gradient(gradient), losses.detach())
    assert gate_gradient(gradient, torch.zeros(count)).abs().sum() == 0


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 1e-6)])
def test_losses_from_half_precision_gradients_are_those_in_double(dtype: torch.dtype, error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(6, 4, 16, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, 4, 16, 16, generator=generator, dtype=torch.float64)
    exact = per_sample_mse(prediction, target).detach()
    # A loss scale, as mixed precision has it: fp16 gradients would be subnormal without.
    (gradient,) = torch.autograd.grad(1024 * F.mse_loss(prediction, target), prediction)
    found = loss_from_gradient(gradient.to(dtype), 1024.0).double()
    torch.testing.assert_close(found, exact.double(), rtol=error, atol=0)
    assert found.log().sub(exact.log()).abs().max() < error, "as a signal: a difference of logarithms"
