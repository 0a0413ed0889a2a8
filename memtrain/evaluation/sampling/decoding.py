"""Images from latents, as diffusers makes them: as many at once as memory allows, without NaN or infinite numbers.

Decoding takes far more memory than denoising (25.8 GB for 32 images of 512 px in fp32), so it runs in slices. Their
size follows from the free memory on a GPU, and from a fixed budget on a CPU (:mod:`memtrain.functional.memory`), or
from the free memory where that is less. An autoencoder that overflows in half precision decodes in fp32 instead.
"""

from __future__ import annotations

import logging

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.at_once import in_parts
from memtrain.evaluation.sampling.free_memory import free_memory
from memtrain.functional.memory import images_at_once
from memtrain.functional.pixels import to_uint8
from memtrain.models.encoding import decode_latents

log = logging.getLogger(__name__)


def decode_images(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Decode clean latents `(B, C, h, w)` to images `(B, 3, H, W)` uint8, on the CPU; no safety checker sees them.

    Raises:
        ConfigurationError: if latents in half precision hold NaN or infinite numbers.
    """
    if not torch.isfinite(latents).all():
        _refuse_or_warn(latents)
    factor = int(getattr(pipeline, "vae_scale_factor", 8))
    height, width = latents.shape[-2] * factor, latents.shape[-1] * factor
    size = _at_once(pipeline, latents.device, height=height, width=width)
    images: list[Tensor] = []
    for start in range(0, len(latents), size):
        rows = range(start, min(start + size, len(latents)))
        parts = in_parts(
            pipeline.vae,
            rows,
            lambda part: _decode(pipeline, latents[part.start : part.stop]),
            pixels=height * width,
            what="Decoding",
        )
        images += [decoded for _, decoded in parts]
    return torch.cat(images)


@torch.no_grad()
def _decode(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    # The half precision of a training run is too narrow for some autoencoders.
    with torch.autocast(latents.device.type, enabled=False):
        decoded = decode_latents(pipeline.vae, latents)
        if not torch.isfinite(decoded).all() and pipeline.vae.dtype == torch.float16:
            log.warning("The autoencoder overflows in float16: it decodes in float32")
            decoded = decode_latents(pipeline.vae, latents, upcast=True)
    return to_uint8(decoded).cpu()


def _refuse_or_warn(latents: Tensor) -> None:
    """Warn of a model that diverged, which is a finding; refuse one that overflowed in half precision."""
    bad = int((~torch.isfinite(latents.flatten(1))).any(dim=1).sum())
    found = f"{bad} of {len(latents)} samples hold NaN or infinite numbers"
    if latents.dtype == torch.float32:
        log.warning("%s: the model has diverged, and these images show nothing", found)
        return
    raise ConfigurationError(
        f"{found} in {str(latents.dtype).removeprefix('torch.')}",
        expected="a model that can compute in half precision",
        remedy="give --dtype bfloat16 or --dtype float32",
    )


def _at_once(pipeline: DiffusionPipeline, device: torch.device, *, height: int, width: int) -> int:
    """Return how many images are decoded at once: by half of the free memory, on a CPU at most by the fixed budget."""
    free, wide = free_memory(device), pipeline.vae.config.get("force_upcast", False)
    number = 4 if wide else pipeline.vae.dtype.itemsize
    fixed = images_at_once(height, width)
    if free is None:
        return fixed
    found = images_at_once(height, width, free=free, bytes_per_number=number)
    return found if device.type == "cuda" else min(fixed, found)
