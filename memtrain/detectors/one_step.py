"""The image after one step from pure noise, for Webster's two detectors.

Source: Webster, "A Reproducible Extraction of Training Images from Diffusion Models" (2023). The published code takes
one step of Heun's method from the highest noise to none. Heun's second half is left out because the noise ends at 0.
The result is the denoiser's estimate of the clean image at the last timestep of the schedule (999), under guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from memtrain.detectors.base import DenoiserStep
from memtrain.functional.diffusion import predicted_noise


@dataclass(frozen=True)
class OneStep:
    """One step from pure noise.

    Attributes:
        noise: the predicted ε under guidance, `(B, C, h, w)`.
        clean: the latents of the implied image, `(B, C, h, w)`.
        sigma: the noise per unit of image, √((1 − ᾱ) / ᾱ).
    """

    noise: Tensor
    clean: Tensor
    sigma: float


def one_step(step: DenoiserStep, *, published: bool = False) -> OneStep:
    """Compute the one-step image of the first denoiser call.

    Args:
        step: the first call of a sampling.
        published: whether to run the denoiser once more at the last timestep of the schedule, as in the published code,
            instead of taking the prediction at the first timestep of the sampling.
    """
    assert step.unconditional is not None and step.latents is not None and step.denoise is not None
    conditional, unconditional, latents = step.conditional, step.unconditional, step.latents
    timestep = step.timestep
    if published:
        assert step.alphas_cumprod is not None
        timestep = len(step.alphas_cumprod) - 1
        latents = latents * (1 - step.alpha_cumprod(timestep)) ** 0.5
        conditional, again = step.denoise(latents, timestep)
        assert again is not None
        unconditional = again
    alpha = step.alpha_cumprod(timestep)
    guided = unconditional.float() + step.guidance_scale * (conditional.float() - unconditional.float())
    noise = predicted_noise(guided, latents, alpha_cumprod=alpha, prediction_type=step.prediction_type)
    clean = (latents.float() - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return OneStep(noise, clean, ((1 - alpha) / alpha) ** 0.5)
