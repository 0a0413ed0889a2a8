"""Per-sample diffusion losses and their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample_mse(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, in fp32.

    Args:
        prediction: `(B, ...)`.
        target: same shape.
        mask: how much each element counts, of a shape that can be expanded to that; None for all alike.

    Returns:
        `(B,)`.
    """
    errors = (prediction.float() - target.float()).square()
    return errors.flatten(1).mean(1) if mask is None else masked_mean(errors, mask)


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean of each sample over what a mask shows, `(B,)`; NaN where it shows nothing.

    Args:
        errors: `(B, ...)`.
        mask: not negative, of a shape that can be expanded to that.
    """
    shown = mask.to(errors).expand_as(errors)
    return (errors * shown).flatten(1).sum(1) / shown.flatten(1).sum(1)


def noisy_and_target(latents: Tensor, noise: Tensor, level: Tensor, *, prediction_type: str) -> tuple[Tensor, Tensor]:
    """What a denoiser is shown in training, and what it should answer.

    Args:
        latents: `(B, ...)` without noise.
        noise: same shape, standard normal.
        level: `(B,)`. For `epsilon`, `v_prediction` (Salimans & Ho, "Progressive Distillation for Fast Sampling of
            Diffusion Models", 2022) and `sample` it is ᾱ of the timestep; for `flow_prediction` (Lipman et al., "Flow
            Matching for Generative Modeling", 2023) the share σ of noise.
        prediction_type: as diffusers' schedulers name it.

    Returns:
        The noisy latents and the target, both of the shape of `latents`.

    Raises:
        ValueError: for another prediction type.
    """
    # In half precision 1 − ᾱ would vanish at low noise.
    exact = level.to(latents.device, torch.promote_types(latents.dtype, torch.float32))
    exact = exact.view(-1, *[1] * (latents.dim() - 1))
    if prediction_type == "flow_prediction":
        shaped = exact.to(latents)
        return (1 - shaped) * latents + shaped * noise, noise - latents
    signal, spread = exact.sqrt().to(latents), (1 - exact).sqrt().to(latents)
    targets = {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}
    if prediction_type not in targets:
        raise ValueError(f"prediction type {prediction_type!r}; known: {[*targets, 'flow_prediction']}")
    return signal * latents + spread * noise, targets[prediction_type]


def clean_latents(noisy: Tensor, target: Tensor, level: Tensor, *, prediction_type: str) -> Tensor:
    """The latents `(B, ...)` that :func:`noisy_and_target` made noisy latents and target of; arguments as there."""
    exact = level.to(noisy.device, torch.promote_types(noisy.dtype, torch.float32))
    exact = exact.view(-1, *[1] * (noisy.dim() - 1))
    if prediction_type == "flow_prediction":
        return noisy - exact.to(noisy) * target
    signal, spread = exact.sqrt().to(noisy), (1 - exact).sqrt().to(noisy)
    found = {"epsilon": (noisy - spread * target) / signal, "v_prediction": signal * noisy - spread * target}
    if prediction_type == "sample":
        return target
    if prediction_type not in found:
        raise ValueError(f"prediction type {prediction_type!r}; known: {[*found, 'sample', 'flow_prediction']}")
    return found[prediction_type]


def signal_to_noise_ratio(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR(t) = ᾱ_t / (1 − ᾱ_t) (Ho et al., "Denoising Diffusion Probabilistic Models", 2020).

    Args:
        alphas_cumprod: `(steps,)` of the noise schedule.
        timesteps: `(B,)` int64.

    Returns:
        `(B,)`.
    """
    alpha = alphas_cumprod.to(timesteps.device)[timesteps]
    return alpha / (1 - alpha)


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Min-SNR loss weight (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023).

    The paper weights the error of the clean image by min(SNR, γ). That error is the one in ε, in v, or in the velocity
    of a flow, times a factor, so the same objective is for each of them:

    Args:
        snr: `(B,)`.
        gamma: cap on the SNR; the paper uses 5.
        prediction_type: `epsilon` (weight min(SNR, γ) / SNR), `v_prediction` (min(SNR, γ) / (SNR + 1)), or
            `flow_prediction` (min(SNR, γ) σ², where SNR = ((1 − σ) / σ)²; the paper does not speak of it).

    Returns:
        `(B,)`.
    """
    capped = snr.clamp(max=gamma)
    if prediction_type == "flow_prediction":
        return capped / (1 + snr.sqrt()).square()
    return capped / (snr + 1 if prediction_type == "v_prediction" else snr)


def predicted_noise(prediction: Tensor, latents: Tensor, *, alpha_cumprod: float, prediction_type: str) -> Tensor:
    """The noise ε that a denoiser's prediction implies for `x_t = √ᾱ x₀ + √(1 − ᾱ) ε`, in fp32.

    Args:
        prediction: `(B, ...)`.
        latents: same shape, x_t.
        alpha_cumprod: ᾱ of the timestep, below 1.
        prediction_type: `epsilon`, `v_prediction` (`√ᾱ ε − √(1 − ᾱ) x₀`, Salimans and Ho, "Progressive Distillation
            for Fast Sampling of Diffusion Models", 2022) or `sample` (x₀).

    Returns:
        Same shape.

    Raises:
        ValueError: for another type.
    """
    slope = noise_slope(alpha_cumprod=alpha_cumprod, prediction_type=prediction_type)
    offset = {"v_prediction": (1 - alpha_cumprod) ** 0.5, "sample": (1 - alpha_cumprod) ** -0.5}.get(prediction_type, 0)
    return slope * prediction.float() + offset * latents.float()


def noise_slope(*, alpha_cumprod: float, prediction_type: str) -> float:
    """Derivative of :func:`predicted_noise` with respect to the prediction; arguments as there."""
    slopes = {
        "epsilon": 1.0,
        "v_prediction": alpha_cumprod**0.5,
        "sample": -((alpha_cumprod / (1 - alpha_cumprod)) ** 0.5),
    }
    if prediction_type not in slopes:
        raise ValueError(f"prediction_type must be one of {list(slopes)}, found {prediction_type!r}")
    return slopes[prediction_type]


def residual_from_gradient(
    gradient: Tensor, loss_scale: float | Tensor = 1.0, loss_weight: Tensor | None = None
) -> Tensor:
    """Prediction minus target, recovered from the gradient of a batch-mean MSE at the denoiser's output.

    For `loss = loss_scale * mean(weight * (prediction - target)²)` over a batch of B samples with n elements each, the
    gradient is `2 * loss_scale * weight * (prediction - target) / (B * n)`.

    Args:
        gradient: `(B, ...)` gradient of the scaled loss with respect to the prediction.
        loss_scale: factor between the mean and the loss that was differentiated: 1 / accumulation steps, times the
            gradient scaler's scale.
        loss_weight: `(B,)` weight of each sample's loss; None for equal weights.

    Returns:
        `(B, ...)` in fp32; NaN where the weight is 0, because nothing is left of the residual there.
    """
    residual = gradient.float() * (gradient.numel() / (2 * loss_scale))
    if loss_weight is None:
        return residual
    weight = torch.where(loss_weight == 0, torch.nan, loss_weight.float().clamp(min=1e-6))
    return residual / weight.view(-1, *[1] * (gradient.dim() - 1))


def loss_from_gradient(gradient: Tensor, loss_scale: float | Tensor = 1.0, loss_weight: Tensor | None = None) -> Tensor:
    """Each sample's unweighted MSE `(B,)`, from the same gradient as :func:`residual_from_gradient`.

    Of gradients in half precision it differs from that in fp64 by at most 2^-8 of itself in bf16 and 2^-11 in fp16,
    which is what one number is rounded by. In fp16 that takes a loss scale which keeps the gradient out of the
    subnormal numbers, as mixed-precision training has it.
    """
    return residual_from_gradient(gradient, loss_scale, loss_weight).square().flatten(1).mean(1)


def gate_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """Re-weight the samples of a mini-batch at the denoiser's output.

    For a loss that is a mean over samples this is exactly the gradient of the mean of `weights * sample_loss`. A weight
    of zero also stops non-finite gradients.

    Args:
        gradient: `(B, ...)`.
        weights: `(B,)`, non-negative.

    Returns:
        Same shape and dtype as `gradient`.
    """
    shaped = weights.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(shaped > 0, shaped * gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device))
