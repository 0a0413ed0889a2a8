"""PixArtTransformer2DModel (PixArt-α and -Σ): a diffusion transformer with cross-attention to T5 tokens.

T5 tokens are `words EOS padding` without BOS, and the model masks padding out. Models that also predict a variance
return it behind the noise. Only the noise counts. Default sites: 12 blocks, evenly spaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from memtrain.models.backbones.base import evenly_spaced, named_arguments
from memtrain.models.backbones.cross_attention import CrossAttentionBackbone


class PixArtBackbone(CrossAttentionBackbone):
    """Cross-attention of PixArtTransformer2DModel."""

    clip_layout: ClassVar[bool] = False
    mask_at: ClassVar[tuple[str, ...]] = ("encoder_attention_mask",)

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Return whether it is a PixArtTransformer2DModel."""
        return isinstance(module, PixArtTransformer2DModel)

    def default_sites(self, names: Sequence[str]) -> list[str]:
        """Return 12 blocks, evenly spaced."""
        return evenly_spaced(names, 12)

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Read `forward(hidden_states, encoder_hidden_states, timestep)`."""
        sample, text, timestep = named_arguments(("hidden_states", "encoder_hidden_states", "timestep"), args, kwargs)
        return sample, timestep, text

    def prediction_gradient(self, denoiser: nn.Module, gradient: Tensor) -> Tensor:
        """Drop the channels of a predicted variance."""
        assert isinstance(denoiser, PixArtTransformer2DModel)
        return gradient[:, : denoiser.config["in_channels"]]
