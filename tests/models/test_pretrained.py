"""Base models are told apart before their weights are read, and load quietly, in the forms that people have them in."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from memtrain.errors import ConfigurationError
from memtrain.models.fingerprint import fingerprint
from memtrain.models.pipeline import load_pipeline
from memtrain.models.pretrained import variant_of
from memtrain.training.pipelines.find import load_trainable
from tests.conformance.pipelines import pipeline_of


def renamed(folder: Path, variant: str, *, parts: tuple[str, ...] = ("unet", "vae", "text_encoder")) -> None:
    for part in parts:
        for weights in (folder / part).glob("*.safetensors"):
            weights.rename(weights.with_name(f"{weights.stem}.{variant}.safetensors"))


def test_a_folder_with_a_variant_alone_is_loaded(
    pipeline: StableDiffusionPipeline, pipeline_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(pipeline_folder, tmp_path / "half")
    renamed(tmp_path / "half", "fp16")
    assert variant_of(tmp_path / "half") == "fp16"
    assert fingerprint(load_pipeline(str(tmp_path / "half"))) == fingerprint(pipeline)
    assert load_pipeline(str(tmp_path / "half")).unet.dtype == torch.float32


def test_a_folder_where_some_parts_have_a_variant_alone_is_loaded(pipeline_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline_folder, tmp_path / "mixed")
    renamed(tmp_path / "mixed", "fp16", parts=("unet",))
    load_pipeline(str(tmp_path / "mixed"))
    assert variant_of(pipeline_folder) is None


def with_denoiser(folder: Path, place: Path, *, name: str = "StableDiffusionPipeline", **options: Any) -> str:
    """The same pipeline with another class, and a UNet of another configuration, of which the JSON alone is changed."""
    shutil.copytree(folder, place)
    for path, change in (
        (place / "model_index.json", {"_class_name": name}),
        (place / "unet" / "config.json", options),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return str(place)


@pytest.mark.parametrize(
    ("channels", "what"), [(9, "an inpainting model"), (8, "edits images"), (5, "depth input"), (7, "of another kind")]
)
def test_a_denoiser_that_is_given_more_than_latents_is_refused(
    channels: int, what: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=f"{what}.*takes {channels} channels, but latents have 4"):
        load_pipeline(with_denoiser(pipeline_folder, tmp_path / "other", in_channels=channels))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("StableDiffusionInpaintPipeline", "it is an inpainting model"),
        ("StableDiffusionInstructPix2PixPipeline", "edits images"),
        ("StableDiffusionControlNetPipeline", "second network"),
        ("StableDiffusionXLImg2ImgPipeline", "the refiner"),
        ("SanaSprintPipeline", "distilled"),
        ("AuraFlowPipeline", "guidance of AuraFlowPipeline in sampling is not known\n"),
    ],
)
def test_other_pipelines_are_refused_by_what_they_are(
    name: str, what: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=what):
        load_trainable(with_denoiser(pipeline_folder, tmp_path / "other", name=name))


def test_a_refiner_is_refused(tmp_path: Path) -> None:
    pipeline_of("sdxl").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="refiner of SDXL"):
        load_trainable(str(tmp_path))


def test_an_incomplete_sdxl_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no text_encoder_2|cannot be loaded"):
        load_trainable(with_denoiser(pipeline_folder, tmp_path / "xl", name="StableDiffusionXLPipeline"))


def test_a_part_a_lora_and_a_file_in_a_folder_are_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="but a UNet2DConditionModel, one part of a pipeline"):
        load_pipeline(str(pipeline_folder / "unet"))
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(ConfigurationError, match="but a LoRA, which must be added to a base model"):
        load_pipeline(str(tmp_path))
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "dream.safetensors")
    with pytest.raises(ConfigurationError, match=r"dream\.safetensors; name this file itself"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("name", ["dream.ckpt", "dream.pt"])
def test_a_pickled_file_is_refused_unread(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is pickled"):
        load_pipeline(str(tmp_path / name))


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({UNET + "out.2.weight": (4, 4)}, "not a whole model: it has no denoiser, no autoencoder, no text encoder"),
        ({"lora_unet_mid_block.lora_down.weight": (4, 4)}, "a LoRA"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 4)}, "a LoRA"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "a ControlNet"),
        ({"emb_params": (1, 768)}, "an embedding of textual inversion"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4)}, "the denoiser alone"),
        ({"encoder.conv_in.weight": (4, 4), "decoder.conv_in.weight": (4, 4)}, "an autoencoder alone"),
        ({UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)}, "an inpainting model"),
        ({UNET + "input_blocks.0.0.weight": (320, 8, 3, 3)}, "a model that edits images"),
        ({"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (4,)}, "the refiner of SDXL"),
        ({"img_in.weight": (4, 384), "guidance_in.in_layer.bias": (4,)}, "not a whole model"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused_by_what_it_is(
    tensors: dict[str, tuple[int, ...]], what: str, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "dream.safetensors")
    with pytest.raises(ConfigurationError, match=f"single-file checkpoint .*{what}"):
        load_trainable(str(tmp_path / "dream.safetensors"))


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dream.safetensors").write_bytes(b"no header")
    with pytest.raises(ConfigurationError, match="is not a safetensors file"):
        load_pipeline(str(tmp_path / "dream.safetensors"))


def test_loading_says_nothing_and_leaves_the_libraries_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stock = pipeline_of("sdxl")
    stock.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading")
    stock.save_pretrained(tmp_path)
    libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    for library in libraries:
        library.set_verbosity(logging.WARNING)
        library.enable_progress_bar()
    capfd.readouterr()
    parts = load_trainable(str(tmp_path))
    written = capfd.readouterr()
    assert (written.out, written.err, caplog.text) == ("", "", "")
    assert parts.scheduler.config["beta_schedule"] == "scaled_linear"
    for library in libraries:
        assert library.get_verbosity() == logging.WARNING
        assert library.is_progress_bar_enabled()


def test_weights_of_another_shape_are_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    place = with_denoiser(pipeline_folder, tmp_path / "other", cross_attention_dim=24)
    assert UNet2DConditionModel.load_config(f"{place}/unet")["cross_attention_dim"] == 24
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_pipeline(place)
