"""A mask scales the channels it names and nothing else, hooked or baked, and says when it cannot."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import find_backbone
from memtrain.models.neuron_mask import NeuronMask
from tests.conformance.families import build, call

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
UP = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture
def unet(pipeline: StableDiffusionPipeline) -> UNet2DConditionModel:
    return copy.deepcopy(pipeline.unet)


def run(unet: Any, text: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    words = torch.randn(3, 5, 16, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 500, 900]), words if text is None else text).sample


def values(unet: UNet2DConditionModel, site: str) -> torch.Tensor:
    """What the value projection of `site` hands on in a forward."""
    kept = []
    handle = unet.get_submodule(f"{site}.to_v").register_forward_hook(lambda m, a, out: kept.append(out))
    run(unet)
    handle.remove()
    return kept[0]


def test_named_channels_are_scaled_and_the_others_untouched(unet: UNet2DConditionModel) -> None:
    before, plain = values(unet, DOWN), run(unet)
    with NeuronMask({DOWN: [3, 1]}, factor=0.25).on(unet):
        after = values(unet, DOWN)
    expected = before.clone()
    expected[:, :, [1, 3]] *= 0.25
    assert torch.equal(after, expected)
    assert torch.equal(run(unet), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_only_the_chosen_rows_are_masked(unet: UNet2DConditionModel) -> None:
    plain = run(unet)
    mask = NeuronMask({DOWN: range(16), UP: range(16)})
    with mask.on(unet):
        masked = run(unet)
        mask.rows = torch.tensor([True, False, True])
        some = run(unet)
    torch.testing.assert_close(some[[0, 2]], masked[[0, 2]])
    torch.testing.assert_close(some[1], plain[1])
    assert (masked - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_baking_equals_the_hook(unet: UNet2DConditionModel) -> None:
    mask = NeuronMask({DOWN: [0, 5], UP: [2]}, factor=0.5)
    with mask.on(unet):
        hooked = run(unet)
    mask.bake(unet)
    torch.testing.assert_close(run(unet), hooked, atol=1e-6, rtol=0)


def test_baked_weights_come_back_bit_for_bit(unet: UNet2DConditionModel) -> None:
    mask = NeuronMask({DOWN: [0, 5], UP: [2]}, factor=0.3)
    before = copy.deepcopy(unet.state_dict())
    with mask.on(unet):
        hooked = run(unet)
    with pytest.raises(KeyError), mask.baked(unet):
        torch.testing.assert_close(run(unet), hooked, atol=1e-6, rtol=0)
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_an_adapter_injected_later_is_masked_too(unet: UNet2DConditionModel) -> None:
    mask = NeuronMask({DOWN: range(16), UP: range(16)})
    with mask.on(unet):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn2.to_v"], init_lora_weights=False), unet)
        run(unet)
        assert not values(unet, DOWN).any()
    assert values(unet, DOWN).any()
    with pytest.raises(ProbeError, match="merge adapters"):
        mask.bake(unet)


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_other_families(family: str) -> None:
    model: Any = build(family).eval()
    arguments = call(family)[0]
    backbone = find_backbone(model)
    assert backbone is not None
    sites = backbone.sites(model)
    with torch.no_grad():
        plain = model(**arguments).sample
        with NeuronMask({name: range(16) for name in sites}).on(model):
            masked = model(**arguments).sample
        NeuronMask({name: range(16) for name in sites}).bake(model)
        torch.testing.assert_close(model(**arguments).sample, masked, atol=1e-6, rtol=0)
    assert (plain - masked).abs().max() > 1e-3


def test_single_stream_blocks_are_refused() -> None:
    model: Any = build("flux")
    with pytest.raises(ProbeError, match="values of image and text in one layer"):
        NeuronMask({"single_transformer_blocks.0.attn": [0]}).attach(model)


def test_masks_join_and_count(unet: UNet2DConditionModel) -> None:
    both = NeuronMask({DOWN: [1, 2]}) | NeuronMask({DOWN: [2, 3], UP: [0]})
    assert both.channels == {DOWN: [1, 2, 3], UP: [0]}
    assert len(both) == 4


def test_a_mask_survives_its_file(tmp_path: Path) -> None:
    mask = NeuronMask({DOWN: [1, 2], UP: [7]}, factor=0.5)
    mask.save(tmp_path / "masks" / "mask.safetensors")
    again = NeuronMask.load(tmp_path / "masks" / "mask.safetensors")
    assert again.channels == mask.channels
    assert again.factor == 0.5
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other", "text", "missing"):
        with pytest.raises(ProbeError, match="is not a neuron mask"):
            NeuronMask.load(tmp_path / f"{name}.safetensors")


def test_what_does_not_exist_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(ProbeError, match="without a channel"):
        NeuronMask({DOWN: []})
    with pytest.raises(ProbeError, match="1 of 1 masked sites are not in UNet2DConditionModel"):
        NeuronMask({"nowhere": [1]}).attach(unet)
    with pytest.raises(ProbeError, match="channels 3 to 99 of"):
        NeuronMask({DOWN: [3, 99]}).attach(unet)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_a_mask_that_was_not_reached_raises(unet: UNet2DConditionModel) -> None:
    mask = NeuronMask({DOWN: [1]})
    with pytest.raises(ProbeError, match="1 of 1 masked sites were not reached"), mask.on(unet):
        unet.get_submodule(f"{DOWN}.to_v")._forward_hooks.clear()
        run(unet)
