"""The saved pipeline makes the images of the hooked one, and the one in memory is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.localization.masked_pipeline import save_masked_pipeline
from memtrain.models.neuron_mask import NeuronMask

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def test_baked_equals_hooked(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    settings = {"seeds": [0, 1], "steps": 3, "guidance_scale": 4.0, "progress": False}
    mask = NeuronMask({SITE: [0, 2, 5, 9]}, factor=-4.0)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    save_masked_pipeline(pipeline, mask, tmp_path / "masked")
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    baked = StableDiffusionPipeline.from_pretrained(tmp_path / "masked", safety_checker=None)
    with mask.on(pipeline.unet):
        hooked = generate(pipeline, ["a b"], sampling=Sampling(**settings)).images
    assert torch.equal(generate(baked, ["a b"], sampling=Sampling(**settings)).images, hooked)
    assert not torch.equal(generate(pipeline, ["a b"], sampling=Sampling(**settings)).images, hooked)
    assert NeuronMask.load(tmp_path / "masked" / "neuron_mask.safetensors").channels == mask.channels


def test_no_pipeline_is_overwritten(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="already"):
        save_masked_pipeline(pipeline, NeuronMask({SITE: [0]}), tmp_path)
