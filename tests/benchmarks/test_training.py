"""The comparison with diffusers' scripts: its clock, and the commands that it compares."""

from __future__ import annotations

import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.benchmarks.scripts import Modules

SCRIPT = """
import sys, time
import torch

weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(int(sys.argv[1])):
    time.sleep(0.05)
    weight.sum().backward()
    optimizer.step()
"""


@pytest.fixture
def training(scripts: Modules) -> ModuleType:
    return scripts.training


@pytest.fixture
def shape(scripts: Modules) -> Any:
    return scripts.training_shapes.Shape(Path("model"), Path("images"), 64, 16)


def test_any_script_is_timed_by_the_steps_of_its_optimizer(training: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    run = training.timed([str(script), "20"], tmp_path / "run")
    assert len(run.seconds) == 20 - training.WARMUP - 1
    assert 0.05 <= run.mean < 0.5
    assert run.before >= 0.05
    assert run.memory > 50


def test_a_script_that_ends_too_soon_is_refused_with_what_it_said(training: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no data here')", encoding="utf-8")
    with pytest.raises(training.CommandError, match="0 step"):
        training.timed([str(script)], tmp_path / "run")


@pytest.mark.parametrize("form", ["full", "lora"])
def test_both_sides_train_the_same(training: ModuleType, shape: Any, tmp_path: Path, form: str) -> None:
    theirs = training.script_command(shape, form, scripts=tmp_path, steps=7, output=tmp_path / "out")
    given = {theirs[index]: theirs[index + 1] for index in range(1, len(theirs) - 1) if theirs[index].startswith("--")}
    training.own_command(shape, form, "cached", steps=7, folder=tmp_path / "own")
    own = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text(encoding="utf-8"))
    model, data, trainer = own["model"]["init_args"], own["data"]["init_args"], own["trainer"]
    assert Path(theirs[0]).name == {"full": "train_text_to_image.py", "lora": "train_text_to_image_lora.py"}[form]
    assert given["--max_train_steps"] == "7" == str(trainer["max_steps"])
    assert given["--train_batch_size"] == str(data["batch_size"])
    assert given["--resolution"] == str(data["resolution"])
    assert float(given["--learning_rate"]) == model["learning_rate"]
    assert given.get("--rank") == (str(model["lora"]["rank"]) if form == "lora" else None)
    assert ("--use_ema" in theirs) == (model["ema_decay"] is not None) == (form == "full")
    assert data["cache"]["latents"]
    assert trainer["callbacks"]


def test_ratios_are_taken_within_a_round(training: ModuleType, shape: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A machine that slows down between rounds changes no ratio."""
    speeds = iter([2.0, 1.0, 1.0, 1.0, 8.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(training, "timed", lambda *_, **__: training.Run([next(speeds)] * 3, 1.0, 100.0))
    options = {"scripts": tmp_path, "steps": 9, "rounds": 2, "folder": tmp_path, "paths": ()}
    kept: list[Any] = []
    found = training.compare(shape, "full", **options, keep=kept.append)
    assert kept[-1] == found and list(kept[0]) == [training.SCRIPT]
    assert found[training.SCRIPT]["speed_ratio"] == 1.0
    assert [found[way]["speed_ratio"] for way in training.WAYS] == [2.0] * 3
    assert found["cached"]["seconds_per_step"] == statistics.median([1.0, 4.0])
