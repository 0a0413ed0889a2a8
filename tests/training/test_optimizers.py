"""Optimizers of others train, and a run that goes on from a checkpoint is the uninterrupted one."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from memtrain.data.module import TextImageDataModule
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import train

OPTIMIZERS: dict[str, tuple[str, float | None, dict[str, Any]]] = {
    "AdamW, fused": ("torch.optim.AdamW", 1e-3, {"fused": True}),
    "Adafactor": ("torch.optim.Adafactor", 1e-2, {}),
    "Adafactor of transformers": (
        "transformers.optimization.Adafactor",
        1e-3,
        {"relative_step": False, "scale_parameter": False},
    ),
    "Adafactor of transformers, without a rate": ("transformers.optimization.Adafactor", None, {}),
    "AdamW in 8 bits": ("bitsandbytes.optim.AdamW8bit", 1e-3, {"min_8bit_size": 16}),
    "Prodigy": ("prodigyopt.Prodigy", 1.0, {"safeguard_warmup": True, "d0": 1e-4}),
}
SLOW = ("Adafactor", "Adafactor of transformers")
"""Those that show nothing which the others do not."""


def chosen(name: str) -> tuple[Any, float | None]:
    path, rate, options = OPTIMIZERS[name]
    package, _, kind = path.rpartition(".")
    pytest.importorskip(path.partition(".")[0])
    return partial(getattr(importlib.import_module(package), kind), **options), rate


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.conformance.mitigation_runs import write_images

    return str(write_images(tmp_path_factory.mktemp("data") / "images"))


def run(folder: Path, images: str, pretrained: Path, name: str, *, stop: int, resume: bool = False) -> list[Any]:
    seed_everything(0)
    optimizer, rate = chosen(name)
    module = TextToImageModule(str(pretrained), learning_rate=rate, optimizer=optimizer, ema_decay=None, seed=0)
    data = TextImageDataModule(
        images, resolution=16, batch_size=4, heldout="split", heldout_fraction=0.3, cache_latents=True
    )
    train(folder, module, data, callbacks=[], stop=stop, resume=resume)
    return module.trained()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in OPTIMIZERS],
)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, pipeline_folder: Path, images: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", images, pipeline_folder, name, stop=5)
    untrained = TextToImageModule(str(pipeline_folder), ema_decay=None).trained()
    assert not all(torch.equal(a, b) for a, b in zip(whole, untrained, strict=True))
    run(tmp_path / "cut", images, pipeline_folder, name, stop=3)
    state = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["state"]
    resumed = run(tmp_path / "cut", images, pipeline_folder, name, stop=5, resume=True)
    for one, other in zip(whole, resumed, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
