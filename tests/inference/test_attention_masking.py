"""MemAttn's mitigation against its definition, for any number of prompts and images, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.inference.attention_masking import AttentionMasking

PROMPTS = ["a cat", "the dog and the fish", "b"]


@pytest.fixture(autouse=True)
def clean(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    pipeline.set_progress_bar_config(disable=True)
    before = {name: type(processor) for name, processor in pipeline.unet.attn_processors.items()}
    yield
    assert {name: type(processor) for name, processor in pipeline.unet.attn_processors.items()} == before
    assert "encode_prompt" not in vars(pipeline)


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], images: int = 1, **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(images)]
    arguments = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent", **options}
    return pipeline(prompts, num_images_per_prompt=images, generator=generators, **arguments).images


class Written:
    """The published formula written out: a probability matrix, its BOS logit multiplied, tokens hidden."""

    def __init__(self, lengths: list[int], c1: float, *, both_halves: bool) -> None:
        self.lengths, self.c1, self.both_halves = lengths, c1, both_halves

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for layer, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        images = len(self.lengths)
        for row in range(len(logits)):
            if row >= images:
                logits[row, :, :, 0] *= self.c1
            if row >= images or self.both_halves:
                logits[row, :, :, self.lengths[row % images] :] = -torch.inf
        output = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2).float()
        return attn.to_out[0](output)


@pytest.mark.parametrize("reference", [False, True])
def test_it_is_the_published_formula(pipeline: StableDiffusionPipeline, reference: bool) -> None:
    with AttentionMasking(c1=1.5, reference=reference)(pipeline):
        found = sample(pipeline, PROMPTS, images=2)
    lengths = [len(pipeline.tokenizer(prompt).input_ids) for prompt in PROMPTS for _ in range(2)]
    before = pipeline.unet.attn_processors
    written = Written(lengths, 1.5, both_halves=reference)
    pipeline.unet.set_attn_processor({n: written if "attn2" in n else old for n, old in before.items()})
    try:
        expected = sample(pipeline, PROMPTS, images=2)
    finally:
        pipeline.unet.set_attn_processor(before)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected - sample(pipeline, PROMPTS, images=2)).abs().max() > 1e-2


@pytest.mark.parametrize("images", [1, 2, 8])
def test_each_image_is_what_it_is_alone(pipeline: StableDiffusionPipeline, images: int) -> None:
    with AttentionMasking()(pipeline):
        together = sample(pipeline, PROMPTS, images=images)
        alone = torch.cat([sample(pipeline, [prompt], images=images) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_neutral_settings_change_nothing(pipeline: StableDiffusionPipeline) -> None:
    with AttentionMasking(c1=1.0, mask=False)(pipeline):
        neutral = sample(pipeline, PROMPTS)
    torch.testing.assert_close(neutral, sample(pipeline, PROMPTS), atol=1e-5, rtol=0)


def test_hiding_eos_and_sampling_without_guidance(pipeline: StableDiffusionPipeline) -> None:
    with AttentionMasking(hide_eos=True)(pipeline):
        hidden = sample(pipeline, PROMPTS, guidance_scale=1.0)
    with AttentionMasking()(pipeline):
        shown = sample(pipeline, PROMPTS, guidance_scale=1.0)
    assert (hidden - shown).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_an_exception_leaves_nothing_behind(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ZeroDivisionError), AttentionMasking()(pipeline):
        raise ZeroDivisionError


def test_what_it_cannot_do_is_refused(pipeline: StableDiffusionPipeline) -> None:
    embeddings = torch.randn(1, 12, 16)
    with pytest.raises(ConfigurationError, match="instead of `prompt_embeds`"), AttentionMasking()(pipeline):
        pipeline(prompt_embeds=embeddings, negative_prompt_embeds=embeddings, num_inference_steps=1)
    with pytest.raises(ConfigurationError, match="Nothing was sampled"), AttentionMasking()(pipeline):
        pass
    with pytest.raises(ConfigurationError, match="masked already"), AttentionMasking()(pipeline):
        AttentionMasking()(pipeline)
    with pytest.raises(ConfigurationError, match="without a pipeline"), AttentionMasking():
        pass
    with pytest.raises(ConfigurationError, match="no cross-attention"):
        AttentionMasking()(object())
