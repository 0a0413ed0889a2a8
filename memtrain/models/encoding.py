"""Text and images in and out of a model: one text encoder call, one encoding of images, one decoding of latents.

Latents are the denoiser's input: scaled, and shifted if the autoencoder's configuration says so. An image becomes the
posterior's mode, so that the same image always has the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.functional.pixels import from_uint8
from memtrain.functional.tokens import tokenize


def encode_tokens(text_encoder: nn.Module, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
    """Encode token ids to text embeddings `(B, T, D)`, as Stable Diffusion 1.x and 2.x read them.

    Args:
        text_encoder: a CLIP text model.
        input_ids: the token ids, `(B, T)` int64.
        attention_mask: the mask of the caption's tokens, `(B, T)`, for encoders whose configuration asks for it.
    """
    embeddings: Tensor = text_encoder(input_ids, attention_mask=attention_mask)[0]
    return embeddings


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str]) -> Tensor:
    """Encode prompts to conditional text embeddings `(P, T, D)`, the same bit for bit as in the pipeline's sampling.

    Args:
        pipeline: a pipeline of Stable Diffusion 1.x or 2.x, on one device.
        prompts: the prompts; longer ones are cut.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    texts = list(prompts)
    # A concept learned by textual inversion may stand for several tokens.
    if hasattr(pipeline, "maybe_convert_prompt"):
        texts = pipeline.maybe_convert_prompt(texts, tokenizer)
    input_ids, mask = (tensor.to(encoder.device) for tensor in tokenize(tokenizer, texts))
    masked = getattr(encoder.config, "use_attention_mask", False)
    return encode_tokens(encoder, input_ids, attention_mask=mask if masked else None)


def clip_states(text_encoder: nn.Module, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states of a CLIP text model before the last layer, and its output, as Stable Diffusion XL and 3 do.

    Args:
        text_encoder: a CLIP text model.
        input_ids: the token ids, `(B, T)` int64.

    Returns:
        `(B, T, width)`, and `(B, projection)`; for models without a projection, the second is all of the last states.
    """
    output = text_encoder(input_ids, output_hidden_states=True)
    return output.hidden_states[-2], output[0]


@torch.no_grad()
def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Encode images to latents `(B, C, h, w)`, in the autoencoder's type and on its device.

    Args:
        vae: an AutoencoderKL, or Sana's AutoencoderDC.
        images: the images, `(B, 3, H, W)`, uint8 or pixel values in [-1, 1].
    """
    images = images.to(vae.device)
    was, kind = vae.dtype, images.device.type
    # SDXL's autoencoder overflows in fp16, with fp16 weights as well as under autocast.
    careful = vae.config.get("force_upcast", False)
    known = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    autocast = known and torch.get_autocast_dtype(kind) == torch.float16
    try:
        vae = vae.float() if careful and was == torch.float16 else vae
        pixel_values = from_uint8(images, dtype=vae.dtype) if images.dtype == torch.uint8 else images.to(vae.dtype)
        with torch.autocast(kind, enabled=False) if careful and autocast else nullcontext():
            encoded = vae.encode(pixel_values)
    finally:
        if vae.dtype != was:
            vae.to(was)
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    moments = _moments(vae, latents)
    if moments is not None:
        mean, std = moments
        return (latents - mean) * vae.config.scaling_factor / std
    shift = vae.config.get("shift_factor")
    return (latents - shift if shift else latents) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Decode clean latents `(B, C, h, w)` to images `(B, 3, H, W)` in [-1, 1], as the stock pipelines do.

    Args:
        vae: an AutoencoderKL.
        latents: the latents, scaled and shifted as in :func:`encode_images`.
        upcast: whether to decode in float32 whatever the type of the weights; the configuration may ask for it anyway.
    """
    config = vae.config
    moments = _moments(vae, latents)
    if moments is not None:
        mean, std = moments
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    # SDXL's autoencoder overflows in fp16.
    overflows = vae.dtype != torch.float32 and upcast
    overflows |= vae.dtype == torch.float16 and config.get("force_upcast", False)
    was = vae.dtype
    try:
        vae = vae.float() if overflows else vae
        images: Tensor = vae.decode(latents.to(vae.dtype)).sample
    finally:
        if overflows:
            vae.to(was)
    return images


def _moments(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the mean and deviation of each channel `(1, C, 1, 1)`, if the configuration has them."""
    mean, std = (vae.config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return None
    return (
        torch.tensor(mean).view(1, -1, 1, 1).to(latents.device, latents.dtype),
        torch.tensor(std).view(1, -1, 1, 1).to(latents.device, latents.dtype),
    )
