"""One small random denoiser of every family, and a batch for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

TEXT = 7
"""Text tokens in a batch; no attention here has as many image tokens."""

Call = tuple[dict[str, Any], Tensor]
"""Keyword arguments of a forward, and its timesteps from 0 to 1,000."""


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _timesteps(batch: int) -> Tensor:
    return torch.tensor([10, 500, 900, 300][:batch])


def unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )


def sdxl() -> UNet2DConditionModel:
    return unet(
        transformer_layers_per_block=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
    )


def pixart() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
    )


def sana() -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
    )


def sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )


def unet_call(batch: int) -> Call:
    steps = _timesteps(batch)
    return {
        "sample": _randn(batch, 4, 8, 8),
        "timestep": steps,
        "encoder_hidden_states": _randn(batch, TEXT, 16),
    }, steps


def sdxl_call(batch: int) -> Call:
    call, steps = unet_call(batch)
    added = {"text_embeds": _randn(batch, 12), "time_ids": _randn(batch, 6)}
    return {**call, "added_cond_kwargs": added}, steps


def pixart_call(batch: int) -> Call:
    steps = _timesteps(batch)
    mask = torch.ones(batch, TEXT)
    mask[0, 5:] = 0
    return {
        "hidden_states": _randn(batch, 4, 8, 8),
        "encoder_hidden_states": _randn(batch, TEXT, 12),
        "timestep": steps,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }, steps


def sana_call(batch: int) -> Call:
    call, steps = pixart_call(batch)
    del call["added_cond_kwargs"]
    return call, steps


def sd3_call(batch: int) -> Call:
    steps = _timesteps(batch)
    return {
        "hidden_states": _randn(batch, 4, 8, 8),
        "encoder_hidden_states": _randn(batch, TEXT, 12),
        "pooled_projections": _randn(batch, 12),
        "timestep": steps,
    }, steps


def flux_call(batch: int) -> Call:
    steps = _timesteps(batch)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    return {
        "hidden_states": _randn(batch, 16, 4),
        "encoder_hidden_states": _randn(batch, TEXT, 12),
        "pooled_projections": _randn(batch, 12),
        "timestep": steps / 1000,
        "img_ids": torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1),
        "txt_ids": torch.zeros(TEXT, 3),
    }, steps


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Call]]] = {
    "unet": (unet, unet_call),
    "sdxl": (sdxl, sdxl_call),
    "pixart": (pixart, pixart_call),
    "sana": (sana, sana_call),
    "sd3": (sd3, sd3_call),
    "flux": (flux, flux_call),
}


def build(family: str) -> nn.Module:
    """A denoiser in training mode whose weights depend on nothing but the family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family][0]()
        for parameter in model.parameters():
            # Zero-initialised gates would hide what comes before them.
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return model.train()


def call(family: str, batch: int = 3) -> Call:
    """Arguments of a forward on `batch` samples."""
    return FAMILIES[family][1](batch)


def gradient_checkpointing(model: Any, reentrant: bool) -> None:
    """Switch gradient checkpointing on."""

    def run(module: Any, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=reentrant)

    model.enable_gradient_checkpointing(run)
