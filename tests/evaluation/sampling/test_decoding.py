"""Images from latents are those of the stock pipeline."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from memtrain.evaluation.sampling.decoding import decode_images


def test_decoding_is_the_pipelines(pipeline: StableDiffusionPipeline) -> None:
    """Up to one grey level of rounding."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"prompt": "a", "num_inference_steps": 2}
    latents, images = (
        pipeline(**options, generator=torch.Generator().manual_seed(0), output_type=kind).images
        for kind in ("latent", "pt")
    )
    pipeline.set_progress_bar_config()
    decoded = decode_images(pipeline, latents)
    assert (decoded.float() - (images * 255).round()).abs().max() <= 1
    assert decoded.float().std() > 10
