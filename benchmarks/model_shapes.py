"""The shapes of the models that people train, as their publishers' configurations have them; no weights.

Sources: `config.json` of the denoisers of stable-diffusion-v1-5, stabilityai/stable-diffusion-xl-base-1.0,
stabilityai/stable-diffusion-3.5-medium and black-forest-labs/FLUX.1-dev, and of their text encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
FLUX1_DEV: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Shape:
    """A model by its configuration.

    Attributes:
        kind: class of its denoiser.
        denoiser: configuration.
        tokens: the number of tokens of a prompt.
        channels: the channels of the latents.
        encoders: names of its text encoders, as :func:`encoder` makes them.
    """

    kind: str
    denoiser: dict[str, Any]
    tokens: int
    channels: int
    encoders: tuple[str, ...]

    def make(self) -> nn.Module:
        """The denoiser, with random weights."""
        model: nn.Module = getattr(diffusers, self.kind)(**self.denoiser)
        return model

    def vae(self) -> nn.Module:
        """The autoencoder."""
        return diffusers.AutoencoderKL(**VAE, latent_channels=self.channels, sample_size=512)

    def call(self, batch: int, pixels: int, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Arguments of the denoiser's forward, without content."""
        side, steps = pixels // 8, torch.zeros(batch, dtype=torch.int64)

        def floats(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype)

        if self.kind == "UNet2DConditionModel":
            text = floats(batch, self.tokens, self.denoiser["cross_attention_dim"])
            given: dict[str, Any] = {"args": (floats(batch, 4, side, side), steps, text)}
            if "addition_embed_type" in self.denoiser:
                given["added_cond_kwargs"] = {"text_embeds": floats(batch, 1280), "time_ids": floats(batch, 6)}
            return given
        pooled = floats(batch, self.denoiser["pooled_projection_dim"])
        text = floats(batch, self.tokens, self.denoiser["joint_attention_dim"])
        given = {"encoder_hidden_states": text, "pooled_projections": pooled}
        if self.kind == "SD3Transformer2DModel":
            latents = floats(batch, self.channels, side, side)
            return {**given, "hidden_states": latents, "timestep": steps}
        patches = (side // 2) ** 2
        positions = {"img_ids": torch.empty(patches, 3), "txt_ids": torch.empty(self.tokens, 3)}
        latents = floats(batch, patches, self.denoiser["in_channels"])
        return {
            **given,
            **positions,
            "hidden_states": latents,
            "timestep": floats(batch),
            "guidance": torch.empty(batch),
        }


def encoder(name: str) -> nn.Module:
    """A text encoder: `clip_l`, `clip_g` or `t5_xxl`."""
    if name == "t5_xxl":
        shape = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
        return T5EncoderModel(T5Config(**shape, vocab_size=32128, feed_forward_proj="gated-gelu"))
    if name == "clip_g":
        sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
        return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=1280))
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return CLIPTextModel(CLIPTextConfig(**sizes))


SHAPES = {
    "sd15": Shape("UNet2DConditionModel", SD15_UNET, 77, 4, ("clip_l",)),
    "sdxl": Shape("UNet2DConditionModel", SDXL_UNET, 77, 4, ("clip_l", "clip_g")),
    "sd35_medium": Shape("SD3Transformer2DModel", SD35_MEDIUM, 333, 16, ("clip_l", "clip_g", "t5_xxl")),
    "flux1_dev": Shape("FluxTransformer2DModel", FLUX1_DEV, 512, 16, ("clip_l", "t5_xxl")),
}
