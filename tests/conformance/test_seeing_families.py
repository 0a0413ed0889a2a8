"""Every family of pipelines can be looked at while it trains: sampled with, and its memory estimated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from memtrain.callbacks.paused_training import paused_training
from memtrain.callbacks.sample_images import SampleImages
from memtrain.cli.plan_cost import memory
from memtrain.evaluation.sampling.generate import generate
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule

from .pipelines import KINDS, pipeline_of

WAYS = {
    "full": {},
    "lora": {"lora": LoRA(rank=2), "execution": Execution(gradient_checkpointing=True)},
    "half": {"lora": LoRA(rank=2), "execution": Execution(frozen_dtype="bfloat16")},
    "half_full": {"execution": Execution(frozen_dtype="bfloat16")},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    pipeline_of(request.param).save_pretrained(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_family_is_sampled_with_and_its_memory_estimated(folder: Path, way: str) -> None:
    module = TextToImageModule(str(folder), seed=0, **WAYS[way])
    weights = {name: one.detach().clone() for name, one in module.named_parameters()}
    schedule = {name: str(value) for name, value in vars(module.scheduler).items()}
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.callbacks = []
    side = 8 * module.parts.pipeline.vae_scale_factor
    sampling = SampleImages(["a"], seeds=[0], steps=2, size=(side, side)).sampling
    with paused_training(trainer, module) as pipeline:
        images = generate(pipeline, ["a dog"], sampling=sampling).images
    assert images.shape[:3] == (1, 1, 3) and images.float().std() > 0
    assert {name: str(value) for name, value in vars(module.scheduler).items()} == schedule
    assert all(torch.equal(one, weights[name]) for name, one in module.named_parameters())
    data: Any = SimpleNamespace(resolution=side, batch_size=2)
    found = memory(SimpleNamespace(module=module, data=data, trainer=trainer, caches={}))  # type: ignore[arg-type]
    trained = sum(one.numel() for one in module.parameters() if one.requires_grad)
    assert found.trained == trained and found.states == 8 * trained
    assert found.passes > 0 and found.encoding > 0
