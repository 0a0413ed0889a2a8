"""One small random pipeline of every known kind, around the denoisers of `families.py`. Images of 16x16, Sana 32x32."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from tests.conftest import LETTERS

from .families import build

KINDS = ("unet", "sdxl", "pixart", "sana", "sd3", "flux")


def tokenizer() -> CLIPTokenizer:
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=12)


def clip(width: int, *, projection: int | None = None) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=projection or width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=54, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=53)
    return T5EncoderModel(config)


def gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=54,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        pad_token_id=53,
        bos_token_id=52,
        eos_token_id=53,
    )
    return Gemma2Model(config)


def deep_autoencoder() -> AutoencoderDC:
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        scaling_factor=0.41,
    )


def autoencoder(channels: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    )


def pipeline_of(kind: str) -> Any:
    """A pipeline in evaluation mode whose weights depend on nothing but the kind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = build(kind)
        ddim = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        flow = FlowMatchEulerDiscreteScheduler()
        if kind == "unet":
            found: Any = StableDiffusionPipeline(
                vae=autoencoder(4),
                text_encoder=clip(16),
                tokenizer=tokenizer(),
                unet=denoiser,
                scheduler=ddim,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        elif kind == "sdxl":
            found = StableDiffusionXLPipeline(
                vae=autoencoder(4),
                text_encoder=clip(8),
                text_encoder_2=clip(8, projection=12),
                tokenizer=tokenizer(),
                tokenizer_2=tokenizer(),
                unet=denoiser,
                scheduler=ddim,
                add_watermarker=False,
            )
        elif kind == "pixart":
            found = PixArtAlphaPipeline(
                tokenizer=tokenizer(), text_encoder=t5(), vae=autoencoder(4), transformer=denoiser, scheduler=ddim
            )
        elif kind == "sana":
            found = SanaPipeline(
                tokenizer=tokenizer(),
                text_encoder=gemma(),
                vae=deep_autoencoder(),
                transformer=denoiser,
                scheduler=flow,
            )
        elif kind == "sd3":
            found = StableDiffusion3Pipeline(
                transformer=denoiser,
                scheduler=flow,
                vae=autoencoder(4, shift_factor=0.06),
                text_encoder=clip(4, projection=6),
                tokenizer=tokenizer(),
                text_encoder_2=clip(4, projection=6),
                tokenizer_2=tokenizer(),
                text_encoder_3=t5(),
                tokenizer_3=tokenizer(),
            )
        else:
            found = FluxPipeline(
                scheduler=flow,
                vae=autoencoder(1, shift_factor=0.1),
                text_encoder=clip(12),
                tokenizer=tokenizer(),
                text_encoder_2=t5(),
                tokenizer_2=tokenizer(),
                transformer=denoiser,
            )
            found.default_sample_size = 8
    for part in found.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return found
