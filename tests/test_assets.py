"""The embedded shards are the ones that their documentation describes."""

import hashlib
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.data.source import open_source
from memtrain.models.pipeline import load_pipeline

from .conftest import ROOT

ASSETS = ROOT / "assets"
COUNTS = {"emoji-train.tar": 2094, "emoji-heldout.tar": 214, "clipart-pd.tar": 1223}


def test_checksums():
    lines = (ASSETS / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    assert listed.keys() == COUNTS.keys()
    for name, digest in listed.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("name", COUNTS)
def test_shard_holds_what_its_description_says(name):
    source = open_source(str(ASSETS / name))
    assert len(source) == COUNTS[name]
    for index in range(0, len(source), 97):
        image = source.load_image(index)
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_emoji_shards_share_no_sample():
    train, heldout = (open_source(str(ASSETS / f"emoji-{part}.tar")).samples for part in ("train", "heldout"))
    assert not {sample.key for sample in train} & {sample.key for sample in heldout}
    assert not {sample.caption for sample in train} & {sample.caption for sample in heldout}


def test_every_licence_that_the_notice_names_is_there():
    notice = (ASSETS / "NOTICE").read_text()
    texts = sorted(path.name for path in ASSETS.glob("LICENSE-*.txt"))
    assert len(texts) == 3
    for name in texts:
        assert name in notice


def stock_pipeline(folder: Path) -> StableDiffusionPipeline:
    """As a user of diffusers loads it, with nothing but the folder; it has sampled an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        image = np.asarray(pipeline("a red ball", num_inference_steps=2).images[0])
    assert image.shape == (64, 64, 3)
    assert image.std() > 0
    return pipeline


def test_the_base_model_samples_in_stock_diffusers_with_no_argument_and_the_weights_that_are_trained():
    pipeline, components = stock_pipeline(ASSETS / "tiny-sd"), load_pipeline(str(ASSETS / "tiny-sd"))
    for name, part in (
        ("unet", components.unet),
        ("vae", components.vae),
        ("text_encoder", components.text_encoder),
    ):
        stock = getattr(pipeline, name).state_dict()
        for key, value in part.state_dict().items():
            assert stock[key].dtype == value.dtype == torch.float32, key
            assert torch.equal(stock[key], value), key


def test_the_base_model_as_it_is_built_does_too(tmp_path):
    spec = importlib.util.spec_from_file_location("build_tiny_sd", ASSETS / "build_tiny_sd.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.finish(str(ASSETS / "tiny-sd"), str(tmp_path / "finished"))
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "finished" / part).read_bytes() == (ASSETS / "tiny-sd" / part).read_bytes(), "still fp16"
    stock_pipeline(tmp_path / "finished")
