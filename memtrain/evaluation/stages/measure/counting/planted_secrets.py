"""Exposure of the secrets that a run planted: canaries and borders.

Method: the denoising loss of each canary's image is ranked among images of the same generator that were never planted,
with the same caption and noise. Generations for the caption are compared with all these images. For each border, the
model paints a new level. :mod:`memtrain.evaluation.stages.measure.counting.exposure` and
:mod:`memtrain.evaluation.stages.measure.counting.border_keys` compute the figures.
Source: as in these modules. The loss takes the place of a language model's log-perplexity, which diffusion models bound
by it (Ho et al., "Denoising Diffusion Probabilistic Models", 2020).
Cost: for each canary `candidates × timesteps` forwards and a sampling; for each border a sampling.
Cannot: measure the loss of pipelines other than Stable Diffusion 1.x and 2.x, nor of weights that are offloaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure
from memtrain.evaluation.sampling.generate import generate, prepared
from memtrain.evaluation.sampling.outpainting import border_levels
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.measure.counting.border_keys import border_exposure
from memtrain.evaluation.stages.measure.counting.exposure import canary_exposure
from memtrain.evaluation.stages.secrets import BorderSecrets, CanarySecrets
from memtrain.functional.diffusion import per_sample_mse
from memtrain.functional.memory import images_at_once
from memtrain.models.encoding import encode_images, encode_prompts
from memtrain.models.stock_pipeline import refuse_offloaded


@torch.no_grad()
def candidate_losses(pipeline: Any, images: Tensor, caption: str, *, timesteps: int = 8, seed: int = 0) -> Tensor:
    """Measure the mean denoising loss `(n,)` of images under one caption, all with the same noise.

    Args:
        pipeline: a Stable Diffusion pipeline with epsilon or v prediction.
        images: the images, `(n, 3, H, W)` uint8.
        caption: the caption of all images.
        timesteps: the number of timesteps, evenly spread over the schedule.
        seed: the seed of the noise.
    """
    refuse_offloaded(pipeline)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    at_once = images_at_once(int(images.shape[-2]), int(images.shape[-1]))
    latents = torch.cat([encode_images(pipeline.vae, part).to(unet.dtype) for part in images.split(at_once)])
    text = encode_prompts(pipeline, [caption])
    spacing = int(scheduler.config["num_train_timesteps"]) // timesteps
    velocity = scheduler.config["prediction_type"] == "v_prediction"
    total = torch.zeros(len(latents), device=latents.device)
    for index in range(timesteps):
        generator = torch.Generator().manual_seed(seed * 1009 + index)
        noise = torch.randn(latents.shape[1:], generator=generator).to(latents)
        step = torch.tensor([index * spacing + spacing // 2], device=latents.device)
        losses = []
        for part in latents.split(at_once):
            same, steps = noise.expand_as(part), step.expand(len(part))
            noisy = scheduler.add_noise(part, same, steps)
            target = scheduler.get_velocity(part, same, steps) if velocity else same
            predicted = unet(noisy, steps, text.expand(len(part), -1, -1)).sample
            losses.append(per_sample_mse(predicted, target))
        total += torch.cat(losses)
    return total.cpu() / timesteps


def exposure_of_canaries(
    pipeline: Any,
    secrets: CanarySecrets,
    *,
    measure: CopyMeasure | None,
    sampling: Sampling | None = None,
    timesteps: int = 8,
) -> dict[str, Any]:
    """Measure the exposure of canaries.

    Args:
        pipeline: the trained pipeline.
        secrets: the canaries.
        measure: the measure that compares generations with candidates; None to measure losses alone.
        sampling: the settings of the sampling.
        timesteps: the number of timesteps of the loss.

    Returns:
        The result of :func:`memtrain.evaluation.stages.measure.counting.exposure.canary_exposure`, with `measure` and
        `timesteps`.
    """
    sampling = sampling or Sampling()
    losses, alike = [], []
    with prepared(pipeline):
        for row, caption in enumerate(secrets.captions):
            images = secrets.candidates(row)
            losses.append(candidate_losses(pipeline, images, caption, timesteps=timesteps))
            if measure is not None:
                made = generate(pipeline, [caption], sampling=sampling.sized_as(images).quiet).images[0]
                found = measure.similarity(measure.describe(made), measure.describe(images))
                alike.append(found.float().amax(dim=0))
    result = canary_exposure(
        losses=torch.stack(losses),
        similarity=torch.stack(alike) if alike else None,
        keys=secrets.keys,
        repetitions=secrets.repetitions,
    )
    return {"measure": None if measure is None else measure.name, "timesteps": timesteps, **result}


def exposure_of_borders(
    pipeline: Any, secrets: BorderSecrets, *, sampling: Sampling | None = None, rate: float = 0.01
) -> dict[str, Any]:
    """Measure the exposure of border levels.

    Args:
        pipeline: the trained pipeline.
        secrets: the borders.
        sampling: the settings of the painting. Its guidance scale is ignored: guidance would push a level away from the
            level without a caption.
        rate: the false-positive rate at which a sample counts as remembered.

    Returns:
        The result of :func:`memtrain.evaluation.stages.measure.counting.border_keys.border_exposure`, with `thickness`
        and the settings of the sampling.
    """
    sampling = replace(sampling or Sampling(), guidance_scale=1.0)
    painted = border_levels(pipeline, secrets.images, secrets.captions, thickness=secrets.thickness, sampling=sampling)
    found = border_exposure(painted, secrets.levels, keys=secrets.keys, repetitions=secrets.repetitions, rate=rate)
    return {"thickness": secrets.thickness, **sampling.said(), **found}


def exposure_of_secrets(
    pipeline: Any,
    canaries: CanarySecrets | None,
    borders: BorderSecrets | None,
    *,
    measure: CopyMeasure | None,
    sampling: Sampling | None = None,
) -> dict[str, Any] | None:
    """Make the part `counts.exposure` of `canaries` and `border_keys`, each None if not planted; None without both."""
    if canaries is None and borders is None:
        return None
    return {
        "canaries": None
        if canaries is None
        else exposure_of_canaries(pipeline, canaries, measure=measure, sampling=sampling),
        "border_keys": None if borders is None else exposure_of_borders(pipeline, borders, sampling=sampling),
    }
