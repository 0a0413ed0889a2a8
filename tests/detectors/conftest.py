"""Sampling by hand in double precision: one image, one half of guidance and one attention map at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

GUIDANCE = 4.0
SEEDS = (0, 5)
PROMPTS = ["a cat", "the dogs", "b"]


@dataclass
class ByHand:
    """What one image's sampling consists of.

    Attributes:
        text: `(2, T, width)` embeddings of the prompt and of the empty one.
        length: tokens of the prompt with BOS and EOS.
        timesteps: of the calls.
        latents: per call `(1, C, h, w)`.
        conditional: per call `(1, C, h, w)` prediction.
        unconditional: per call the same under the empty prompt.
        maps: per call and site `(H, N, T)` attention under the prompt.
        final: `(1, C, h, w)` latents of the image.
    """

    text: Tensor
    length: int
    timesteps: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    conditional: list[Tensor] = field(default_factory=list)
    unconditional: list[Tensor] = field(default_factory=list)
    maps: list[list[Tensor]] = field(default_factory=list)
    final: Tensor = field(default_factory=lambda: torch.empty(0))


class NaiveAttention:
    """Attention as a softmax written out, which keeps every map of a cross-attention."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        probabilities = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
        if encoder_hidden_states is not None:
            self.maps.append(probabilities[0])
        return attn.to_out[0]((probabilities @ value).transpose(1, 2).flatten(2))


@torch.no_grad()
def sample_by_hand(pipeline: StableDiffusionPipeline, prompt: str, seed: int, steps: int) -> ByHand:
    """One image of a pipeline whose scheduler does not scale its input."""
    processors = pipeline.unet.attn_processors
    naive = NaiveAttention()
    pipeline.unet.set_attn_processor(naive)
    try:
        tokens = pipeline.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        seen = ByHand(pipeline.text_encoder(tokens)[0], len(pipeline.tokenizer(prompt).input_ids))
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(1, 4, 8, 8, generator=generator, dtype=pipeline.unet.dtype)
        pipeline.scheduler.set_timesteps(steps)
        for timestep in pipeline.scheduler.timesteps:
            seen.timesteps.append(int(timestep))
            seen.latents.append(latents)
            seen.unconditional.append(pipeline.unet(latents, timestep, seen.text[1:]).sample)
            naive.maps.clear()
            seen.conditional.append(pipeline.unet(latents, timestep, seen.text[:1]).sample)
            seen.maps.append(list(naive.maps))
            guided = seen.unconditional[-1] + GUIDANCE * (seen.conditional[-1] - seen.unconditional[-1])
            latents = pipeline.scheduler.step(guided, timestep, latents).prev_sample
        seen.final = latents
    finally:
        pipeline.unet.set_attn_processor(processors)
    return seen


def double(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A copy in double precision."""
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False).to(torch.float64)


@pytest.fixture(scope="session")
def exact(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The random pipeline in double precision."""
    return double(pipeline)


@pytest.fixture(scope="session")
def exact_velocity(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The same network taken as one that predicts v."""
    copied = double(pipeline)
    copied.scheduler = type(copied.scheduler).from_config(copied.scheduler.config, prediction_type="v_prediction")
    return copied
