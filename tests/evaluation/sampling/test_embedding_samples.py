"""Images from embeddings are those from prompts, and masks are each prompt's own."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.embedding_samples import sample_embeddings
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.models.encoding import encode_prompts
from memtrain.models.neuron_mask import NeuronMask

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
PROMPTS = ["a b c", "d"]
SAMPLING = Sampling(seeds=(0, 5), steps=3, guidance_scale=4.0, batch_size=3, progress=False)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to rounding: kernels sum in another order for another batch."""
    return int((a.int() - b.int()).abs().max()) <= 1


def test_they_are_the_images_of_the_prompts(pipeline: StableDiffusionPipeline) -> None:
    embeddings = encode_prompts(pipeline, PROMPTS)
    expected = generate(pipeline, PROMPTS, sampling=SAMPLING).images
    assert torch.equal(sample_embeddings(pipeline, embeddings, sampling=SAMPLING), expected)


def test_each_prompt_is_sampled_under_its_own_mask(pipeline: StableDiffusionPipeline) -> None:
    embeddings = encode_prompts(pipeline, PROMPTS)
    plain = sample_embeddings(pipeline, embeddings, sampling=SAMPLING)
    mask = NeuronMask({SITE: range(16)}, factor=-3.0)
    masked = sample_embeddings(pipeline, embeddings, masks=[None, mask], sampling=SAMPLING)
    assert close(masked[0], plain[0])
    with mask.on(pipeline.unet):
        alone = generate(pipeline, PROMPTS[1:], sampling=SAMPLING).images
    assert close(masked[1:], alone)
    assert not close(masked[1], plain[1])
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_the_pipeline_is_left_as_it_was(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.train()
    try:
        sample_embeddings(pipeline, encode_prompts(pipeline, ["a"]), sampling=Sampling(seeds=[0], steps=1))
        assert pipeline.unet.training
    finally:
        pipeline.unet.eval()


@pytest.mark.parametrize(("count", "masks"), [(0, None), (2, [None])])
def test_contradicting_settings_are_refused(
    pipeline: StableDiffusionPipeline, count: int, masks: list[None] | None
) -> None:
    with pytest.raises(ConfigurationError, match="embeddings"):
        sample_embeddings(pipeline, torch.zeros(count, 12, 16), masks=masks)
