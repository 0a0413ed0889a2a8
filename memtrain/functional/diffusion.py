"""Per-sample diffusion losses and their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample_mse(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the mean squared error of each sample, in fp32.

    Args:
        prediction: the predictions, `(B, ...)`.
        target: the targets, of the same shape.
        mask: the weight of each element, of a shape that expands to that of the targets; None for equal weights.

    Returns:
        `(B,)`.
    """
    errors = (prediction.float() - target.float()).square()
    return errors.flatten(1).mean(1) if mask is None else masked_mean(errors, mask)


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Compute the weighted mean of each sample, `(B,)`; NaN if all its weights are 0.

    Args:
        errors: the values, `(B, ...)`.
        mask: the non-negative weights, of a shape that expands to that of `errors`.
    """
    shown = mask.to(errors).expand_as(errors)
    return (errors * shown).flatten(1).sum(1) / shown.flatten(1).sum(1)


def noisy_and_target(latents: Tensor, noise: Tensor, level: Tensor, *, prediction_type: str) -> tuple[Tensor, Tensor]:
    """Compute the input and the target of a denoiser in training.

    Args:
        latents: the latents without noise, `(B, ...)`.
        noise: the standard normal noise, of the same shape.
        level: the noise level of each sample, `(B,)`. For `epsilon`, `v_prediction` (Salimans & Ho, "Progressive
            Distillation for Fast Sampling of Diffusion Models", 2022) and `sample` it is ᾱ of the timestep; for
            `flow_prediction` (Lipman et al., "Flow Matching for Generative Modeling", 2023) the share σ of noise.
        prediction_type: the kind of the prediction, as named by diffusers' schedulers.

    Returns:
        The noisy latents and the target, both of the shape of `latents`.

    Raises:
        ValueError: if the prediction type is not known.
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
    """Recover the latents `(B, ...)` from the results of :func:`noisy_and_target`; the other arguments are its own."""
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
    """Compute SNR(t) = ᾱ_t / (1 − ᾱ_t) (Ho et al., "Denoising Diffusion Probabilistic Models", 2020).

    Args:
        alphas_cumprod: ᾱ of the noise schedule, `(steps,)`.
        timesteps: the timesteps, `(B,)` int64.

    Returns:
        `(B,)`.
    """
    alpha = alphas_cumprod.to(timesteps.device)[timesteps]
    return alpha / (1 - alpha)


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Compute the Min-SNR weight (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023).

    The paper weights the error of the clean image by min(SNR, γ). That error is the one in ε, in v, or in the velocity
    of a flow, times a factor. So the weight of the same objective depends on the prediction type.

    Args:
        snr: the SNR, `(B,)`.
        gamma: the cap on the SNR; the paper uses 5.
        prediction_type: the kind of the prediction: `epsilon` (weight min(SNR, γ) / SNR), `v_prediction` (min(SNR, γ) /
            (SNR + 1)), or `flow_prediction` (min(SNR, γ) σ², where SNR = ((1 − σ) / σ)²; the paper does not speak of
            it).

    Returns:
        `(B,)`.
    """
    capped = snr.clamp(max=gamma)
    if prediction_type == "flow_prediction":
        return capped / (1 + snr.sqrt()).square()
    return capped / (snr + 1 if prediction_type == "v_prediction" else snr)


def predicted_noise(prediction: Tensor, latents: Tensor, *, alpha_cumprod: float, prediction_type: str) -> Tensor:
    """Compute the noise ε that a denoiser's prediction implies for `x_t = √ᾱ x₀ + √(1 − ᾱ) ε`, in fp32.

    Args:
        prediction: the predictions, `(B, ...)`.
        latents: the noisy latents x_t, of the same shape.
        alpha_cumprod: the value ᾱ of the timestep, below 1.
        prediction_type: the kind of the prediction: `epsilon`, `v_prediction` (`√ᾱ ε − √(1 − ᾱ) x₀`, Salimans and Ho,
            "Progressive Distillation for Fast Sampling of Diffusion Models", 2022) or `sample` (x₀).

    Returns:
        The noise, of the same shape.

    Raises:
        ValueError: if the prediction type is not known.
    """
    slope = noise_slope(alpha_cumprod=alpha_cumprod, prediction_type=prediction_type)
    offset = {"v_prediction": (1 - alpha_cumprod) ** 0.5, "sample": (1 - alpha_cumprod) ** -0.5}.get(prediction_type, 0)
    return slope * prediction.float() + offset * latents.float()


def noise_slope(*, alpha_cumprod: float, prediction_type: str) -> float:
    """Compute the derivative of :func:`predicted_noise` with respect to the prediction; same arguments."""
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
    """Recover prediction minus target from the gradient of a batch-mean MSE at the denoiser's output.

    For `loss = loss_scale * mean(weight * (prediction - target)²)` over a batch of B samples with n elements each, the
    gradient is `2 * loss_scale * weight * (prediction - target) / (B * n)`.

    Args:
        gradient: the gradient of the scaled loss with respect to the prediction, `(B, ...)`.
        loss_scale: the factor between the mean and the differentiated loss: 1 / accumulation steps, times the gradient
            scaler's scale.
        loss_weight: the weight of each sample's loss, `(B,)`; None for equal weights.

    Returns:
        `(B, ...)` in fp32; NaN for samples with weight 0, because their gradient is 0.
    """
    residual = gradient.float() * (gradient.numel() / (2 * loss_scale))
    if loss_weight is None:
        return residual
    weight = torch.where(loss_weight == 0, torch.nan, loss_weight.float().clamp(min=1e-6))
    return residual / weight.view(-1, *[1] * (gradient.dim() - 1))


def loss_from_gradient(gradient: Tensor, loss_scale: float | Tensor = 1.0, loss_weight: Tensor | None = None) -> Tensor:
    """Compute each sample's unweighted MSE `(B,)`, from the same gradient as :func:`residual_from_gradient`.

    For gradients in half precision, its relative difference from the value in fp64 is at most 2^-8 in bf16 and 2^-11 in
    fp16, the rounding of one number. In fp16 this needs a loss scale that keeps the gradient out of the subnormal
    numbers, as in mixed-precision training.
    """
    return residual_from_gradient(gradient, loss_scale, loss_weight).square().flatten(1).mean(1)


def gate_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """Re-weight the samples of a mini-batch at the denoiser's output.

    For a loss that is a mean over samples this is exactly the gradient of the mean of `weights * sample_loss`. A weight
    of zero also stops non-finite gradients.

    Args:
        gradient: the gradient, `(B, ...)`.
        weights: the non-negative weights of the samples, `(B,)`.

    Returns:
        The weighted gradient, of the same shape and dtype.
    """
    shaped = weights.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(shaped > 0, shaped * gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device))
