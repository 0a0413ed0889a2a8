"""Images from latents: rounding, and the stock pipeline's images."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from memtrain.evaluation.sampling.decoding import decode_images, to_uint8


def test_to_uint8_rounds_and_clamps() -> None:
    """-1, 0 and 1 are 0, 128 (127.5 rounded to even) and 255."""
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255, 255]


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
