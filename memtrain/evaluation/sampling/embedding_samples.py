"""Sample images from text embeddings, each prompt under its own neuron mask.

For the prompts' own embeddings and without masks, the images are those of
:func:`memtrain.evaluation.sampling.generate.generate` with the same seeds, so masked, unmasked and re-triggered images
start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.at_once import in_parts
from memtrain.evaluation.sampling.decoding import decode_images
from memtrain.evaluation.sampling.fitting import images_that_fit
from memtrain.evaluation.sampling.generate import prepared, sampled_size
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.files.progress import progress_bar
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.row_masks import row_masks


@torch.no_grad()
def sample_embeddings(
    pipeline: StableDiffusionPipeline,
    embeddings: Tensor,
    *,
    sampling: Sampling | None = None,
    masks: Sequence[NeuronMask | None] | None = None,
) -> Tensor:
    """Sample one image for every embedding and seed.

    Args:
        pipeline: Stable Diffusion 1.x or 2.x pipeline.
        embeddings: conditional embeddings `(P, T, D)`; the unconditional one is the embedding of the empty prompt.
        sampling: settings.
        masks: P masks, None for no mask; default no masks. Both halves of guidance are masked.

    Returns:
        `(P, K, 3, H, W)` uint8 on the CPU.

    Raises:
        ConfigurationError: if settings contradict each other.
    """
    sampling = sampling or Sampling()
    masks = [None] * len(embeddings) if masks is None else list(masks)
    if not len(embeddings) or len(masks) != len(embeddings):
        raise ConfigurationError(
            f"{len(embeddings)} embeddings and {len(masks)} masks",
            expected="at least one embedding, and as many masks",
            remedy="pass None for each embedding that is not masked",
        )
    height, width = sampling.size or (None, None)
    pairs = [(row, seed) for row in range(len(embeddings)) for seed in sampling.seeds]

    def some(numbers: range) -> Tensor:
        batch = pairs[numbers.start : numbers.stop]
        rows = [row for row, _ in batch]
        with row_masks(pipeline.unet, [masks[row] for row in rows]):
            latents = pipeline(
                prompt_embeds=embeddings[rows].to(pipeline.device, pipeline.unet.dtype),
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                height=height,
                width=width,
                output_type="latent",
            ).images
        return decode_images(pipeline, latents)

    images = []
    side = sampled_size(pipeline, sampling)
    bar = progress_bar(total=len(pairs), desc="sampling", unit="image", disable=not sampling.progress)
    with prepared(pipeline), bar:
        most = images_that_fit(pipeline, sampling, size=side)
        for start in range(0, len(pairs), sampling.batch_size):
            batch = range(start, min(start + sampling.batch_size, len(pairs)))
            done = in_parts(pipeline, batch, some, pixels=side[0] * side[1], most=most)
            images += [decoded for _, decoded in done]
            bar.update(len(batch))
    sampled = torch.cat(images)
    return sampled.view(-1, len(sampling.seeds), *sampled.shape[1:])
