"""Denoising loss on held-out images: what a run costs in quality, measured the same way for every checkpoint.

Each image is noised at timesteps spread evenly over the schedule, with noise that depends on the seed alone, so that
two checkpoints are compared on the same noise and the difference is paired.

Source: the training objective of Ho et al., "Denoising Diffusion Probabilistic Models", 2020, unweighted.
Cost: `timesteps` forward passes per image. Cannot: say how images look.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import DataError
from memtrain.functional.diffusion import per_sample_mse
from memtrain.functional.memory import images_at_once
from memtrain.models.encoding import encode_images, encode_prompts
from memtrain.models.stock_pipeline import refuse_offloaded

NOISE_BLOCK = 64
"""Images whose noise is one draw, however many are computed at once."""


@torch.no_grad()
def heldout_loss(
    pipeline: StableDiffusionPipeline,
    images: Tensor,
    *,
    captions: list[str],
    timesteps: int = 16,
    seed: int = 0,
    first_image: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Mean denoising loss of each image.

    Args:
        pipeline: of epsilon or v prediction.
        images: `(P, 3, H, W)` uint8.
        captions: P captions.
        timesteps: number of timesteps per image, evenly spread.
        seed: of the noise.
        first_image: number of the first image where these are a part of all, a multiple of :data:`NOISE_BLOCK`; the
            noise depends on it.
        batch_size: images per forward pass; default by their size. The noise does not depend on it.

    Returns:
        `(P,)`.

    Raises:
        DataError: if images and captions do not belong together.
        ConfigurationError: for an offloaded pipeline.
    """
    if len(images) != len(captions) or not captions:
        raise DataError(f"{len(images)} images and {len(captions)} captions", expected="as many, at least one")
    refuse_offloaded(pipeline)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    spacing = int(scheduler.config["num_train_timesteps"]) // timesteps
    at_once = batch_size or images_at_once(int(images.shape[-2]), int(images.shape[-1]))
    losses = []
    for first in range(0, len(captions), NOISE_BLOCK):
        last = min(first + NOISE_BLOCK, len(captions))
        parts = [slice(start, min(start + at_once, last)) for start in range(first, last, at_once)]
        # An autoencoder that is careful in fp16 answers in fp32.
        latents = torch.cat([encode_images(pipeline.vae, images[part]).to(unet.dtype) for part in parts])
        text = encode_prompts(pipeline, captions[first:last])
        total = torch.zeros(len(latents), device=pipeline.device)
        for index in range(timesteps):
            generator = torch.Generator().manual_seed((seed * 100_003 + first_image + first) * 1009 + index)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            steps = torch.full((len(latents),), index * spacing + spacing // 2, device=latents.device)
            noisy = scheduler.add_noise(latents, noise, steps)
            velocity = scheduler.config["prediction_type"] == "v_prediction"
            target = scheduler.get_velocity(latents, noise, steps) if velocity else noise
            predicted = [
                unet(*inputs).sample
                for inputs in zip(noisy.split(at_once), steps.split(at_once), text.split(at_once), strict=True)
            ]
            total += per_sample_mse(torch.cat(predicted), target)
        losses.append(total.cpu() / timesteps)
    return torch.cat(losses)
