"""Adapters switched off, and merged for a while."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from memtrain.models.adapters import adapted_layers, can_be_switched_off, merge_for_good, merged, switched_off

INPUTS = (torch.linspace(-2, 2, 2 * 4 * 64).view(2, 4, 8, 8), torch.tensor([5, 900]), torch.ones(2, 7, 16))


@pytest.fixture
def unet(pipeline: StableDiffusionPipeline) -> Callable[..., Any]:
    def make(*, learnt: bool = True, **options: Any) -> Any:
        made = UNet2DConditionModel.from_config(pipeline.unet.config)
        made.load_state_dict(pipeline.unet.state_dict())
        made.requires_grad_(False)
        made.add_adapter(LoraConfig(**{"r": 2, "target_modules": ["to_q", "conv1"], **options}))
        for name, value in made.named_parameters() if learnt else ():
            if "lora_" in name:
                value.data.add_(0.3 * torch.randn(value.shape))
        return made.eval()

    return make


def output(unet: Any) -> Tensor:
    with torch.no_grad():
        return unet(*INPUTS).sample


def trained(unet: nn.Module) -> list[nn.Parameter]:
    return [value for value in unet.parameters() if value.requires_grad]


def test_switched_off_it_is_the_base_model_bit_for_bit(
    unet: Callable[..., Any], pipeline: StableDiffusionPipeline
) -> None:
    adapted = unet()
    before, wanting = output(adapted), trained(adapted)
    with switched_off([adapted]):
        assert torch.equal(output(adapted), output(pipeline.unet))
        assert trained(adapted) == wanting
    assert torch.equal(output(adapted), before)
    with pytest.raises(ValueError, match="in between"), switched_off([adapted]):
        raise ValueError("in between")
    assert torch.equal(output(adapted), before)


def test_only_adapters_that_begin_as_no_change_can_be_switched_off(unet: Callable[..., Any]) -> None:
    for options in ({}, {"init_lora_weights": "gaussian"}, {"use_dora": True, "target_modules": ["to_q", "to_v"]}):
        fresh = unet(learnt=False, **options)
        assert can_be_switched_off(fresh, trained(fresh))
    learnt = unet()
    assert not can_be_switched_off(learnt, trained(learnt))
    fresh.conv_in.requires_grad_(True)
    assert not can_be_switched_off(fresh, trained(fresh)), "a layer without adapters is trained, too"
    magnitude = unet(learnt=False, use_dora=True)
    next(value for name, value in magnitude.named_parameters() if "magnitude" in name).data.mul_(1.1)
    assert not can_be_switched_off(magnitude, trained(magnitude))
    style = unet()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        style.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), adapter_name="second")
    style.set_adapter(["default", "second"])
    for name, value in style.named_parameters():
        value.requires_grad_("second" in name)
    assert not can_be_switched_off(style, trained(style)), "another adapter acts, and is part of the base model"


@pytest.mark.parametrize("dora", [False, True])
def test_merged_for_a_while_and_as_before(dora: bool, unet: Callable[..., Any]) -> None:
    adapted = unet(use_dora=dora)
    before, weights = output(adapted), {name: value.clone() for name, value in adapted.state_dict().items()}
    wanting = trained(adapted)
    with merged(adapted):
        assert not adapted_layers(adapted)
        assert type(adapted.get_submodule("down_blocks.0.resnets.0.conv1")) is nn.Conv2d
        assert adapted.state_dict().keys() == UNet2DConditionModel.from_config(adapted.config).state_dict().keys()
        torch.testing.assert_close(output(adapted), before, atol=1e-5, rtol=1e-4)
    assert torch.equal(output(adapted), before)
    after = adapted.state_dict()
    assert list(after) == list(weights) and all(torch.equal(after[name], value) for name, value in weights.items())
    assert trained(adapted) == wanting
    assert adapted._hf_peft_config_loaded and "default" in adapted.peft_config


def test_merged_for_good_at_half_the_scale(unet: Callable[..., Any], pipeline: StableDiffusionPipeline) -> None:
    adapted = unet()
    layer: Any = adapted.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    expected = layer.base_layer.weight + 0.5 * layer.get_delta_weight("default")
    merge_for_good(adapted, scale=0.5)
    assert not adapted_layers(adapted)
    found = adapted.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    assert type(found) is nn.Linear
    torch.testing.assert_close(found.weight, expected)
    assert adapted.state_dict().keys() == pipeline.unet.state_dict().keys()
