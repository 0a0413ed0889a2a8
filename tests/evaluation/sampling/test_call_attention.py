"""Attention of single calls: the rows, the column of EOS, and only when asked."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import ProbeError
from memtrain.evaluation.sampling.call_attention import CallAttention
from memtrain.models.backbones.base import find_backbone

TOKENS = 12


def reader(pipeline: StableDiffusionPipeline, images: int = 3) -> CallAttention:
    backbone = find_backbone(pipeline.unet)
    assert backbone is not None
    return CallAttention(pipeline.unet, backbone, images=images)


def call(pipeline: StableDiffusionPipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    text = 3 * torch.randn(6, TOKENS, 16, generator=generator)
    with torch.no_grad():
        pipeline.unet(torch.randn(6, 4, 8, 8, generator=generator), 500, text)


def test_reads_what_is_asked_and_only_then(pipeline: StableDiffusionPipeline) -> None:
    attention = reader(pipeline)
    removals = attention.attach()
    eos = torch.tensor([4, 2, 11])
    try:
        attention.begin(TOKENS, every_token=True, eos=eos)
        call(pipeline)
        attention.check()
        attention.end()
        kept = dict(attention.token_attention), dict(attention.eos_attention)
        call(pipeline)
        assert (attention.token_attention, attention.eos_attention) == kept
        attention.begin(TOKENS, every_token=False, eos=None)
        call(pipeline)
        attention.check()
        assert not attention.token_attention
        assert not attention.eos_attention
    finally:
        for remove in removals:
            remove()
    tokens, maps = kept
    assert len(tokens) == 4
    assert list(maps) == ["down_blocks.0.attentions.0.transformer_blocks.0.attn2"]
    for site, found in maps.items():
        assert found.shape == (3, 64)
        column: Tensor = tokens[site].gather(1, eos[:, None])[:, 0]
        torch.testing.assert_close(found.mean(dim=1), column)
    assert not any(module._forward_pre_hooks for module in pipeline.unet.modules())


def test_a_silent_site_is_an_error(pipeline: StableDiffusionPipeline) -> None:
    attention = reader(pipeline)
    attention.begin(TOKENS, every_token=False, eos=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ProbeError, match="1 of 4 attention sites reported nothing"):
        attention.check()
