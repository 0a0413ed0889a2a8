"""Paint a new border around pictures: the known centre is kept at every step of a stock sampler.

Method: sampling starts from noise. After each step the latents of the centre are replaced by those of the known picture
at that step's noise, so the model paints the border around it. Every cell of the latents that shows a part of the
border is painted, so the border should consist of whole cells.
Source: RePaint (Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", CVPR 2022) for
the kept centre, without its jumps back in time. SolidMark (Kommineni et al., arXiv 2503.00592) for borders; it pastes
the picture in pixels every ten steps, by a decoding and an encoding each. The picture is encoded with a border of
middle grey, not its own: the encoder sees beyond a cell, and would tell the model the level that the test asks for. A
second encoding with the painted border after half of the steps made key errors no smaller on the embedded model.
Cost: a sampling.
Cannot: serve pipelines that predict a velocity along straight paths (Stable Diffusion 3, FLUX, Sana), nor PixArt's,
whose pipeline has no callback per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.sampling.at_once import in_parts
from memtrain.evaluation.sampling.decoding import decode_images
from memtrain.evaluation.sampling.fitting import images_that_fit
from memtrain.evaluation.sampling.generate import prepared
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.files.progress import progress_bar
from memtrain.functional.border import border_mask, latent_border, read_border
from memtrain.models.encoding import encode_images
from memtrain.models.stock_pipeline import refuse_offloaded

KNOWN = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
GREY = 127
"""Level of a border without information."""


def paint_borders(
    pipeline: Any,
    images: Tensor,
    captions: Sequence[str],
    *,
    thickness: int,
    sampling: Sampling | None = None,
) -> Tensor:
    """Paint the border of each picture with the model.

    Args:
        pipeline: Stable Diffusion 1.x, 2.x or XL pipeline, left as it was.
        images: `(P, 3, H, W)` uint8; their content in the border is not used.
        captions: P captions.
        thickness: thickness of the border, pixels.
        sampling: settings; the size is taken from the images.

    Returns:
        `(P, K, 3, H, W)` uint8 as decoded, on the CPU; the centre is the output of the autoencoder.

    Raises:
        ConfigurationError: for another pipeline.
        DataError: if images and captions do not belong together.
    """
    if type(pipeline).__name__ not in KNOWN:
        raise ConfigurationError(
            f"{type(pipeline).__name__} cannot keep a part of a picture while it samples",
            expected=f"one of {', '.join(KNOWN)}",
            remedy="leave border keys out of this evaluation",
        )
    refuse_offloaded(pipeline)
    if len(images) != len(captions) or not captions:
        raise DataError(f"{len(images)} images and {len(captions)} captions", expected="equal numbers, at least one")
    sampling = (sampling or Sampling()).sized_as(images)
    border = border_mask(images.shape[-2], images.shape[-1], thickness)
    neutral = torch.where(border, torch.tensor(GREY, dtype=torch.uint8), images)
    pairs = [(row, seed) for row in range(len(captions)) for seed in sampling.seeds]
    side = (int(images.shape[-2]), int(images.shape[-1]))

    def some(numbers: range) -> Tensor:
        batch = pairs[numbers.start : numbers.stop]
        rows, seeds = [row for row, _ in batch], [seed for _, seed in batch]
        texts = [captions[row] for row in rows]
        return _paint(pipeline, neutral[rows], texts, seeds=seeds, border=border, sampling=sampling)

    painted = []
    with (
        prepared(pipeline),
        progress_bar(total=len(pairs), desc="painting borders", disable=not sampling.progress) as bar,
    ):
        most = images_that_fit(pipeline, sampling, size=side)
        for start in range(0, len(pairs), sampling.batch_size):
            batch = range(start, min(start + sampling.batch_size, len(pairs)))
            done = in_parts(pipeline, batch, some, pixels=side[0] * side[1], most=most, what="Painting borders of")
            painted += [part for _, part in done]
            bar.update(len(batch))
    images_of = torch.cat(painted)
    return images_of.view(len(captions), len(sampling.seeds), *images_of.shape[1:])


def border_levels(
    pipeline: Any,
    images: Tensor,
    captions: Sequence[str],
    *,
    thickness: int,
    sampling: Sampling | None = None,
) -> Tensor:
    """Return the level `(P, K)` from 0 to 1 of borders that the model paints; arguments as :func:`paint_borders`."""
    painted = paint_borders(pipeline, images, captions, thickness=thickness, sampling=sampling)
    return read_border(painted, thickness)


def _paint(
    pipeline: Any,
    neutral: Tensor,
    captions: list[str],
    *,
    seeds: list[int],
    border: Tensor,
    sampling: Sampling,
) -> Tensor:
    """Return a batch of pictures `(B, 3, H, W)` with a painted border."""
    # In the denoiser's type: some autoencoders return fp32 in half precision.
    known = encode_images(pipeline.vae, neutral).to(pipeline.unet.dtype)
    height, width = border.shape
    thickness = int((~border).any(dim=0).int().argmax())
    inside = ~latent_border(height, width, thickness, latent=(known.shape[-2], known.shape[-1])).to(known.device)
    noise = torch.stack(
        [torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    ).to(known)

    def keep(pipe: Any, index: int, timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents, steps, there = values["latents"], pipe.scheduler.timesteps, known
        if index + 1 < len(steps):
            there = pipe.scheduler.add_noise(known, noise, steps[index + 1 : index + 2].expand(len(known)))
        return {"latents": torch.where(inside, there.to(latents), latents)}

    latents = pipeline(
        prompt=captions,
        latents=noise.clone(),
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        height=height,
        width=width,
        output_type="latent",
        callback_on_step_end=keep,
    ).images
    return decode_images(pipeline, latents)
