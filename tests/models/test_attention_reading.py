"""One attention site, read by itself."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from memtrain.models.attention_reading import AttentionReader, without_cast_cache
from memtrain.models.backbones.unet import UNetBackbone
from memtrain.models.observation import Observation

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def test_a_site_is_read_by_its_definition_and_only_what_is_asked_for(pipeline: object) -> None:
    unet: UNet2DConditionModel = pipeline.unet  # type: ignore[attr-defined]
    site = unet.get_submodule(SITE)
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 64, 16, generator=generator), 3 * torch.randn(2, 5, 16, generator=generator)
    call = {"encoder_hidden_states": text, "attention_mask": None}
    plain, more = Observation(["a", "b"]), Observation(["a", "b"])
    with torch.no_grad():
        AttentionReader(UNetBackbone()).read(SITE, site, (image,), call, tokens=5, into=plain)
        AttentionReader(UNetBackbone(), neurons=True).read(SITE, site, (image,), call, tokens=5, into=more)
        heads = site.heads
        query, key = (
            layer(states).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, states in ((site.to_q, image), (site.to_k, text))
        )
        expected = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1).mean(dim=(1, 2))
        neurons = site.to_v(text).abs().mean(dim=1)
    torch.testing.assert_close(plain.token_attention[SITE], expected)
    assert not plain.neuron_activation
    assert torch.equal(more.token_attention[SITE], plain.token_attention[SITE])
    torch.testing.assert_close(more.neuron_activation[SITE], neurons)


def test_the_cast_cache_is_off_within_and_as_before_after() -> None:
    before = torch.is_autocast_cache_enabled()
    with pytest.raises(RuntimeError, match="broken"), without_cast_cache():
        assert not torch.is_autocast_cache_enabled()
        raise RuntimeError("broken")
    assert torch.is_autocast_cache_enabled() is before is True
