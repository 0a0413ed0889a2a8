"""A checkpoint in one file, named as the first Stable Diffusion was, is the pipeline that it was made of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.models.pipeline import load_pipeline
from memtrain.training.base_model import BaseModel
from memtrain.training.pipelines.find import load_trainable
from tests.conformance.pipelines import clip, tokenizer

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str) -> str:
    """As the latent diffusion models of CompVis call a layer of a UNet of four blocks with two layers each."""
    block = re.match(r"(down|up|mid)_block(?:s\.(\d))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    if block is None:
        stem, end = name.rsplit(".", 1)
        return f"{ENDS[stem]}.{end}"
    side, number, kind, layer, rest = block[1], int(block[2] or 0), block[3], int(block[4]), block[5]
    if kind == "resnets":
        stem, end = rest.rsplit(".", 1)
        rest = f"{RESNET[stem]}.{end}"
    place = {
        "resnets": (2 * layer, None) if side == "mid" else (layer, 0),
        "attentions": (1, None) if side == "mid" else (layer, 1),
        "downsamplers": (2, "0.op"),
        "upsamplers": (2, "1.conv" if number == 0 else "2.conv"),
    }[kind]
    if side == "mid":
        return f"middle_block.{place[0]}.{rest}"
    first = 3 * number + place[0] + (1 if side == "down" else 0)
    rest = rest.removeprefix("conv.") if "samplers" in kind else rest
    return f"{'input' if side == 'down' else 'output'}_blocks.{first}.{place[1]}.{rest}"


def autoencoder_name(name: str) -> str:
    """The same of an autoencoder of four blocks."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        for ours, theirs in ATTENTION.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
    return name


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """The weights of a pipeline, as one file of CompVis holds them."""
    found = {"model.diffusion_model." + unet_name(name): value for name, value in pipeline.unet.state_dict().items()}
    for name, value in pipeline.vae.state_dict().items():
        theirs = autoencoder_name(name)
        inner = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", theirs)
        found["first_stage_model." + theirs] = value[:, :, None, None] if inner else value
    for name, value in pipeline.text_encoder.state_dict().items():
        found["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = value
    return {name: value.contiguous() for name, value in found.items()}


@pytest.fixture(scope="module")
def whole() -> StableDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                norm_num_groups=4,
            ),
            text_encoder=clip(16),
            tokenizer=tokenizer(),
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(8, 8, 16, 16),
                cross_attention_dim=16,
                attention_head_dim=2,
                norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@pytest.fixture
def file(whole: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """The checkpoint, and beside it a folder of its kind without weights."""
    save_file(checkpoint(whole), tmp_path / "dream.safetensors")
    whole.save_pretrained(tmp_path / "dream")
    for weights in (tmp_path / "dream").rglob("*.safetensors"):
        weights.unlink()
    return tmp_path / "dream.safetensors"


def assert_same(found: Any, expected: Any) -> None:
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


def test_the_configurations_beside_it_are_enough(file: Path, whole: StableDiffusionPipeline) -> None:
    assert_same(load_pipeline(str(file)), whole)
    assert_same(load_trainable(str(file)).pipeline, whole)


def test_the_configurations_can_be_named(file: Path, whole: StableDiffusionPipeline) -> None:
    shutil.move(file.with_suffix(""), file.parent / "configurations")
    given = BaseModel(path=str(file), config=str(file.parent / "configurations"))
    assert_same(load_trainable(given).pipeline, whole)


def test_without_configurations_and_network_it_is_said_what_to_do(file: Path) -> None:
    shutil.rmtree(file.with_suffix(""))
    with pytest.raises(ConfigurationError, match=r"single-file checkpoint") as refused:
        load_trainable(str(file))
    assert "from_single_file('dream.safetensors').save_pretrained('dream')" in str(refused.value)
    assert "put the folder of a StableDiffusionPipeline beside it as dream/" in str(refused.value)
