"""UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL. The `attn2` of every transformer block reads the text.

SDXL joins the embeddings of its two text encoders along the width, so the tokens have the layout of one encoder.
Default sites: the last attention of each down, mid and up block. These are 5 of SDXL's 70 sites, and 7 of the 16 sites
of SD 1.x and 2.x. Among the 7 is the fourth site, by which MemAttn (Ren et al., ECCV 2024) detects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from memtrain.models.backbones.base import named_arguments
from memtrain.models.backbones.cross_attention import CrossAttentionBackbone


class UNetBackbone(CrossAttentionBackbone):
    """Cross-attention of UNet2DConditionModel."""

    clip_layout: ClassVar[bool] = True
    pooled_at: ClassVar[tuple[str, ...]] = ("added_cond_kwargs", "text_embeds")
    text_position: ClassVar[int] = 2

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Return whether it is a UNet2DConditionModel."""
        return isinstance(module, UNet2DConditionModel)

    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return every `attn2`: down blocks, mid block, up blocks."""
        order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        return dict(sorted(super().sites(denoiser).items(), key=lambda item: order.get(item[0].split(".")[0], 3)))

    def default_sites(self, names: Sequence[str]) -> list[str]:
        """Return the last attention of each block."""
        return list({name.split(".attentions.")[0]: name for name in names}.values())

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Read `forward(sample, timestep, encoder_hidden_states)`."""
        sample, timestep, text = named_arguments(("sample", "timestep", "encoder_hidden_states"), args, kwargs)
        return sample, timestep, text
