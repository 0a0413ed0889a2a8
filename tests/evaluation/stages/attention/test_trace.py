"""The course of token attention against the attention matrices written out, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.attention.trace import trace_attention

OPTIONS: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0, "progress": False}


class Recording(AttnProcessor2_0):
    """Builds the probabilities of every cross-attention in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Tensor:
        query, key = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states))
        )
        self.maps.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(dim=(1, 2)))
        return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)


def test_it_is_what_the_probability_matrices_give(pipeline: StableDiffusionPipeline) -> None:
    prompts = ["a cat", "the dogs"]
    trace = trace_attention(pipeline, prompts, sampling=Sampling(seeds=[0, 5], batch_size=2, **OPTIONS))
    assert trace.attention.shape == (2, 3, 12) and trace.entropy.shape == trace.summary_entropy.shape == (2, 3)
    assert trace.lengths.tolist() == [6, 9]
    pipeline.set_progress_bar_config(disable=True)
    before = pipeline.unet.attn_processors
    for row, prompt in enumerate(prompts):
        recording = Recording()
        pipeline.unet.set_attn_processor({n: recording if "attn2" in n else old for n, old in before.items()})
        try:
            pipeline(
                prompt,
                num_images_per_prompt=2,
                generator=[torch.Generator().manual_seed(seed) for seed in (0, 5)],
                num_inference_steps=3,
                guidance_scale=4.0,
                output_type="latent",
            )
        finally:
            pipeline.unet.set_attn_processor(dict(before))
        sites = len(recording.maps) // 3
        # (S, sites, [2 unconditional; 2 conditional], T): the two conditional images, averaged over sites.
        average = torch.stack(recording.maps).unflatten(0, (3, sites))[:, :, 2:].mean(dim=1)
        terms = -average * average.log()
        length = len(pipeline.tokenizer(prompt).input_ids)
        expected = {
            "attention": average.mean(dim=1),
            "entropy": terms.sum(-1).mean(dim=1),
            "summary_entropy": terms[..., length - 1 :].sum(-1).mean(dim=1),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(trace, name)[row].double(), value, atol=1e-5, rtol=0)


def test_prompts_do_not_depend_on_the_batch(pipeline: StableDiffusionPipeline) -> None:
    prompts = ["a", "bb", "c d e"]
    one, all_ = (
        trace_attention(pipeline, prompts, sampling=Sampling(seeds=[1], batch_size=size, **OPTIONS)) for size in (1, 8)
    )
    torch.testing.assert_close(one.attention, all_.attention, atol=1e-5, rtol=0)


def test_what_has_no_such_tokens_is_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ConfigurationError, match="0 prompts"):
        trace_attention(pipeline, [])
