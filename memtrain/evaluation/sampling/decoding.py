"""Images from latents, as diffusers makes them."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.functional.pixels import to_uint8
from memtrain.models.encoding import decode_latents


def decode_images(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Clean latents `(B, C, h, w)` to images `(B, 3, H, W)` uint8, on the CPU; no safety checker sees them."""
    # Half precision, where a training computes in it, is too narrow for some autoencoders.
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        return to_uint8(decode_latents(pipeline.vae, latents)).cpu()
