"""Denoising loss on held-out images: the cost in quality, measured in the same way for every checkpoint.

Each image is noised at timesteps spread evenly over the schedule. The noise depends on the seed only. So two
checkpoints are compared on the same noise, and their difference is paired.

Source: the training objective of Ho et al., "Denoising Diffusion Probabilistic Models", 2020, unweighted.
Cost: `timesteps` forward passes per image. Cannot: judge how images look.
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
"""Number of images whose noise is one draw, for any batch size."""


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
    """Compute the mean denoising loss of each image.

    Args:
        pipeline: a pipeline with epsilon or v prediction.
        images: the images, `(P, 3, H, W)` uint8.
        captions: the P captions.
        timesteps: the number of timesteps per image, evenly spread.
        seed: the seed of the noise.
        first_image: the number of the first image if these are a part of all images, a multiple of
            :data:`NOISE_BLOCK`. The noise depends on it.
        batch_size: the number of images per forward pass; by default from their size. The noise does not depend on it.

    Returns:
        `(P,)`.

    Raises:
        DataError: if images and captions do not belong together.
        ConfigurationError: if the pipeline is offloaded.
    """
    if len(images) != len(captions) or not captions:
        raise DataError(
            f"{len(images)} images and {len(captions)} captions",
            expected="one caption per image, and at least one image",
        )
    refuse_offloaded(pipeline)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    spacing = int(scheduler.config["num_train_timesteps"]) // timesteps
    at_once = batch_size or images_at_once(int(images.shape[-2]), int(images.shape[-1]))
    losses = []
    for first in range(0, len(captions), NOISE_BLOCK):
        last = min(first + NOISE_BLOCK, len(captions))
        parts = [slice(start, min(start + at_once, last)) for start in range(first, last, at_once)]
        # An autoencoder that upcasts in fp16 returns fp32.
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
