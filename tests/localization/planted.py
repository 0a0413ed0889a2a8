"""A random UNet with Stable Diffusion's module names, in which a few value neurons carry each memorized prompt."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from memtrain.localization.predictor import Predictor

WIDTH, TOKENS = 24, 5


def planted_unet(*, seed: int = 0, size: int = 16, small: bool = False) -> UNet2DConditionModel:
    """With the 7 layers of Stable Diffusion 1.4: two in each of the down blocks 0 to 2, and the middle; `small`: 3."""
    options: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16)}
    if small:
        options = {
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("UpBlock2D",) * 2,
            "layers_per_block": 1,
        }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=size, cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=4, **options
        )
    return unet.eval()


def plant(unet: UNet2DConditionModel, *, strength: float = 30.0, gain: float = 300.0, neurons: int = 3) -> None:
    """Let `neurons` of each value layer read one direction of the text, and make what they write large.

    Queries get a fixed field, so that what a text adds has a place in the image.
    """
    sites = Predictor(unet, encode=_none, predict=_none, shape=(4, 8, 8), timesteps=(1.0,)).sites()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for number, site in enumerate(sites.values()):
            site.to_q.register_forward_hook(_add_field(number))
            site.to_k.weight.mul_(8)
            chosen = torch.randperm(site.to_v.weight.shape[0], generator=generator)[:neurons]
            for place, neuron in enumerate(chosen.tolist()):
                site.to_v.weight[neuron].zero_()
                site.to_v.weight[neuron, (number * neurons + place) % WIDTH] = strength / (1 + place)
                site.to_out[0].weight[:, neuron] *= strength
        unet.conv_out.weight.mul_(gain)


def _add_field(seed: int) -> Callable[..., Tensor]:
    def add(module: nn.Module, args: tuple[Tensor, ...], queries: Tensor) -> Tensor:
        side = math.isqrt(queries.shape[1])
        drawn = torch.randn(1, queries.shape[2], 4, 4, generator=torch.Generator().manual_seed(seed))
        field = nn.functional.interpolate(drawn, size=(side, side), mode="bilinear")
        return queries + 3 * field.flatten(2).transpose(1, 2)

    return add


def _none(*args: object) -> Tensor:
    raise NotImplementedError


def planted_predictor(unet: UNet2DConditionModel, *, size: int = 16) -> Predictor:
    """A predictor whose text embeddings are small noise, plus directions of the planted neurons for odd prompts."""

    def encode(prompts: Sequence[str]) -> Tensor:
        rows = []
        for prompt in prompts:
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            text = 0.05 * torch.randn(TOKENS, WIDTH, generator=generator)
            if "memorized" in prompt:
                chosen = torch.randperm(WIDTH, generator=generator)[:4]
                text[:, chosen] += torch.rand(TOKENS, 4, generator=generator) + 0.3
            rows.append(text)
        return torch.stack(rows)

    def predict(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = unet(latents, timesteps, encoder_hidden_states=text).sample
        return output

    return Predictor(
        unet, encode=encode, predict=predict, shape=(4, size, size), timesteps=(981.0, 961.0, 941.0), name="planted"
    )
