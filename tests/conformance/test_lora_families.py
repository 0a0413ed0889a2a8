"""Adapters of every family, saved and loaded by stock diffusers or by evaluation, or merged: what was trained."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memtrain.models.adapter_file import adapter_path, load_adapter
from memtrain.models.adapters import adapted_layers, merged
from memtrain.models.stock_pipeline import denoiser_of
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timestep_lora import TimestepRank

from .pipelines import KINDS, pipeline_of

pytestmark = pytest.mark.slow

CAPTIONS, TIMESTEPS = ["a dog", "some cat", "x y z"], torch.tensor([10, 500, 900])
TEXT = {"unet": 1, "sdxl": 2, "sd3": 2, "flux": 1}
"""Text encoders whose adapters diffusers stores."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(kind)
    pipeline_of(kind).save_pretrained(place)
    return place


def module(folder: Path, **options: Any) -> TextToImageModule:
    """With adapters that have learnt something, in evaluation mode; without options, the base model."""
    torch.manual_seed(0)
    made = TextToImageModule(str(folder), lora=LoRA(**options) if options else None, ema_decay=None, seed=0)
    generator = torch.Generator().manual_seed(0)
    for value in made.trained() if options else ():
        value.data.add_(0.3 * torch.randn(value.shape, generator=generator))
    return made.eval()


def losses(of: TextToImageModule, *, steps: Tensor = TIMESTEPS) -> Tensor:
    latents = torch.linspace(-2, 2, 3 * of.vae.config["latent_channels"] * 64).view(3, -1, 8, 8)
    with torch.no_grad():
        return of.sample_loss({**of.tokens(CAPTIONS), "latents": latents}, steps, of.step_generator(0))


def test_everyone_reads_what_was_trained(kind: str, folder: Path, tmp_path: Path) -> None:
    trained, plain = module(folder, rank=3, alpha=2.0, dropout=0.5, text_encoder=kind in TEXT), module(folder)
    found, base = losses(trained), losses(plain)
    assert (found - base).abs().max() > 1e-3
    trained.save_adapters(tmp_path)
    encoders = [one for one in trained.parts.text_encoders.values() if adapted_layers(one)]
    assert len(encoders) == TEXT.get(kind, 0)

    added = module(folder)
    load_adapter(added.parts.pipeline, adapter_path(tmp_path))
    assert not adapted_layers(added.denoiser)
    torch.testing.assert_close(losses(added), found, atol=1e-5, rtol=1e-5)
    if hasattr(plain.parts.pipeline, "load_lora_weights"):
        plain.parts.pipeline.load_lora_weights(tmp_path)
        torch.testing.assert_close(losses(plain), found, atol=1e-5, rtol=1e-5)
    else:
        assert kind == "pixart", "diffusers has no loader for its pipeline"
    with ExitStack() as contexts:
        for part in trained.parts.pipeline.components.values():
            if isinstance(part, nn.Module):
                contexts.enter_context(merged(part))
        torch.testing.assert_close(losses(trained), found, atol=1e-5, rtol=1e-5)
    assert torch.equal(losses(trained), found)


def test_each_sample_has_the_rank_of_its_own_timestep(folder: Path) -> None:
    """In every family's own scale of timesteps: that of t is the model of which all other ranks are zero."""
    masked = module(folder, rank=4, timestep_rank=TimestepRank(minimum=1))
    found = losses(masked)
    for row, rank in enumerate((3, 2, 1)):
        cut = module(folder, rank=4)
        for layer in adapted_layers(denoiser_of(cut.parts.pipeline)).values():
            layer.lora_B["default"].weight.data[:, rank:] = 0
        torch.testing.assert_close(found[row], losses(cut)[row], atol=1e-5, rtol=1e-5)
