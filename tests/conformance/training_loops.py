"""The loss of one batch as diffusers' training scripts compute it, family by family, on the parts of a stock pipeline.

`examples/text_to_image/train_text_to_image.py` and `train_text_to_image_sdxl.py`, `examples/dreambooth/` for SD3, FLUX
and Sana, of diffusers 0.42; PixArt as its authors' train_pixart_lora_hf.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, FluxPipeline
from torch import Tensor

Loss = Callable[[Any, list[str], Tensor, Tensor, Tensor], Tensor]
"""Of a stock pipeline, captions, latents, noise and timesteps."""


def noised(pipeline: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    return DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(latents, noise, timesteps)


def flowing(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    sigmas = (timesteps / 1000).view(-1, 1, 1, 1)
    return (1.0 - sigmas) * latents + sigmas * noise


def mean(prediction: Tensor, target: Tensor) -> Tensor:
    return ((prediction.float() - target.float()) ** 2).reshape(len(target), -1).mean(1)


def unet(pipeline: Any, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    text, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
    noisy = noised(pipeline, latents, noise, timesteps)
    return mean(pipeline.unet(noisy, timesteps, text, return_dict=False)[0], noise)


def sdxl(pipeline: Any, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    text, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    height, width = 2 * latents.shape[2], 2 * latents.shape[3]
    ids = torch.tensor([[height, width, 0, 0, height, width]] * len(latents), dtype=latents.dtype)
    noisy = noised(pipeline, latents, noise, timesteps)
    added = {"time_ids": ids, "text_embeds": pooled}
    return mean(pipeline.unet(noisy, timesteps, text, added_cond_kwargs=added, return_dict=False)[0], noise)


def pixart(pipeline: Any, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    text, mask, *_ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    predicted = pipeline.transformer(
        noised(pipeline, latents, noise, timesteps),
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return mean(predicted.chunk(2, 1)[0], noise)


def sana(pipeline: Any, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    text, mask, *_ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    predicted = pipeline.transformer(
        hidden_states=flowing(latents, noise, timesteps),
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=timesteps,
        return_dict=False,
    )[0]
    return mean(predicted, noise - latents)


def sd3(pipeline: Any, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    text, _, pooled, _ = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
    predicted = pipeline.transformer(
        hidden_states=flowing(latents, noise, timesteps),
        timestep=timesteps,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return mean(predicted, noise - latents)


def flux(pipeline: Any, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    text, pooled, text_ids = pipeline.encode_prompt(captions, None)
    count, channels, height, width = latents.shape
    packed = FluxPipeline._pack_latents(flowing(latents, noise, timesteps), count, channels, height, width)
    predicted = pipeline.transformer(
        hidden_states=packed,
        timestep=timesteps / 1000,
        guidance=None,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", latents.dtype),
        return_dict=False,
    )[0]
    return mean(FluxPipeline._unpack_latents(predicted, height * 2, width * 2, 2), noise - latents)


LOSSES: dict[str, Loss] = {"unet": unet, "sdxl": sdxl, "pixart": pixart, "sana": sana, "sd3": sd3, "flux": flux}
