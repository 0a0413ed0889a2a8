"""Networks on disk: a scripted descriptor, a random CLIP."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import CLIPConfig, CLIPModel

from memtrain.families.network_file import trust_scripts


@pytest.fixture(autouse=True, scope="module")
def networks_are_trusted() -> Iterator[None]:
    """Networks of these tests are TorchScript of their own making; see tests/families/test_network_file.py."""
    trust_scripts()
    yield
    trust_scripts(False)


def save_script(module: nn.Module, path: Path) -> None:
    """As TorchScript, the form of the published weights, although torch would rather have it otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(path)


@pytest.fixture(scope="session")
def clip_folder(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random CLIP of 8-pixel images and 16 dimensions, and the letters' tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    text = {**pipeline.text_encoder.config.to_dict(), "projection_dim": 16}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    pipeline.tokenizer.save_pretrained(folder)
    return folder
