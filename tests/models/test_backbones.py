"""Finding the denoiser in its host and wrappers, and which sites are read."""

from itertools import pairwise

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from torch import nn

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import evenly_spaced, find_backbone, find_denoiser, unwrap
from memtrain.models.backbones.sd3 import SD3Backbone
from memtrain.models.probe import DenoiserProbe
from tests.conformance.families import TEXT, build, call


@pytest.fixture
def unet(pipeline: StableDiffusionPipeline) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(pipeline.unet.config)


def test_the_denoiser_is_found_inside_a_module(unet: UNet2DConditionModel) -> None:
    host = nn.ModuleDict({"model": unet, "other": nn.Linear(2, 2)})
    name, module, _ = find_denoiser(host)
    assert (name, module) == ("model", unet)
    assert find_backbone(nn.Linear(2, 2)) is None
    with pytest.raises(ProbeError, match="0 denoisers found"):
        find_denoiser(nn.Linear(2, 2))
    with pytest.raises(ProbeError, match="2 denoisers found in ModuleList: 0, 1"):
        find_denoiser(nn.ModuleList([unet, UNet2DConditionModel.from_config(unet.config)]))


def test_of_a_denoiser_and_its_wrapper_the_wrapper_is_found(unet: UNet2DConditionModel) -> None:
    compiled = torch.compile(unet, backend="eager")
    for host in (nn.ModuleDict({"a": unet, "b": compiled}), nn.ModuleDict({"b": compiled, "c": unet})):
        name, module, _ = find_denoiser(host)
        assert name == "b"
        assert module is compiled
        assert unwrap(module) is unet
    lora = get_peft_model(unet, LoraConfig(r=2, target_modules=["to_q"]))
    name, module, _ = find_denoiser(nn.ModuleDict({"unet": lora}))
    assert name == "unet"
    assert module is lora
    assert unwrap(module) is unet


def test_evenly_spaced_keeps_the_last() -> None:
    names = [str(index) for index in range(57)]
    chosen = evenly_spaced(names, 12)
    assert len(chosen) == 12
    assert chosen[-1] == "56"
    gaps = {int(b) - int(a) for a, b in pairwise(chosen)}
    assert gaps == {4, 5}
    assert evenly_spaced(names[:3], 12) == names[:3]


@pytest.mark.parametrize(("shape", "every", "read"), [("SD 1.5", 16, 7), ("SDXL", 70, 5)])
def test_default_sites_of_the_real_shapes(shape: str, every: int, read: int) -> None:
    """The last attention of each block; MemAttn's fourth layer of SD 1.5 is one of them."""
    options = {
        "SD 1.5": {"cross_attention_dim": 768},
        "SDXL": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
        },
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**options[shape])
    assert len(DenoiserProbe(unet, sites="*").sites) == every
    sites = list(DenoiserProbe(unet).sites)
    assert len(sites) == read
    assert [name.split("_")[0] for name in sites] == sorted(name.split("_")[0] for name in sites)
    expected = {
        "SD 1.5": "down_blocks.1.attentions.1.transformer_blocks.0.attn2",
        "SDXL": "mid_block.attentions.0.transformer_blocks.9.attn2",
    }
    assert expected[shape] in sites


def test_another_caption_finds_its_place_however_the_call_was_written() -> None:
    """SD3's pooled embeddings, given by position."""
    denoiser = build("sd3")
    arguments, _ = call("sd3")
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    args = tuple(arguments[name] for name in names)
    caption = {"text_embeddings": torch.zeros(1, TEXT, 12), "pooled_embeddings": torch.ones(1, 12)}
    found = SD3Backbone().with_caption(args, {}, forward=denoiser.forward, caption=caption)
    assert list(found) == list(names)
    assert not found["encoder_hidden_states"].any()
    assert bool((found["pooled_projections"] == 1).all())
    assert found["pooled_projections"].shape == (3, 12)
    assert found["hidden_states"] is args[0]
