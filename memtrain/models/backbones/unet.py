"""UNet2DConditionModel: Stable Diffusion 1.x and 2.x. Text is read by `attn2` of every transformer block."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import Backbone


class UNetBackbone(Backbone):
    """Cross-attention of UNet2DConditionModel."""

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """A UNet2DConditionModel."""
        return isinstance(module, UNet2DConditionModel)

    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Every `attn2`: down blocks, mid block, up blocks."""
        found = {
            name: module
            for name, module in denoiser.named_modules()
            if isinstance(module, Attention) and name.endswith("attn2")
        }
        order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        return dict(sorted(found.items(), key=lambda item: order.get(item[0].split(".")[0], 3)))

    def project(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Re-project as diffusers' AttnProcessor2_0 does."""
        assert isinstance(attention, Attention)
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        text = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        mask = args[2] if len(args) > 2 else kwargs.get("attention_mask")
        if text is None or mask is not None or hidden.dim() != 3 or getattr(attention, "fused_projections", False):
            raise ProbeError(
                "A cross-attention was called in a way the probe does not read: "
                f"text given: {text is not None}, attention mask given: {mask is not None}, input of "
                f"{hidden.dim()} dimensions, fused projections: {getattr(attention, 'fused_projections', False)}",
                expected="text embeddings, no attention mask, (B, N, C) input, separate projections",
                remedy="unfuse the projections (unfuse_qkv_projections) and leave encoder_attention_mask out",
            )
        if attention.norm_cross:
            text = attention.norm_encoder_hidden_states(text)
        query, key = attention.to_q(hidden), attention.to_k(text)
        shape = (hidden.shape[0], -1, attention.heads, key.shape[-1] // attention.heads)
        query, key = query.view(shape).transpose(1, 2), key.view(shape).transpose(1, 2)
        query = query if attention.norm_q is None else attention.norm_q(query)
        return query, key if attention.norm_k is None else attention.norm_k(key)

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """`forward(sample, timestep, encoder_hidden_states)`."""
        names = ("sample", "timestep", "encoder_hidden_states")
        sample, timestep, text = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(names))
        return sample, timestep, text

    def output(self, result: Any) -> Tensor:
        """`.sample`, or the first of a tuple."""
        prediction: Tensor = result[0] if isinstance(result, tuple) else result.sample
        return prediction
