"""The configurations that train adapters, on tiny models: they run as they are, and leave a file for diffusers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from memtrain.cli.evaluation import evaluate
from memtrain.cli.training import train
from tests.conftest import ROOT

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)


def run(names: list[str], *, images: Path, pretrained: Path, folder: Path, steps: int, **more: str) -> None:
    train(
        [
            *["fit", *(word for name in names for word in ("--config", str(ROOT / "configs" / f"{name}.yaml")))],
            *["--trainer.default_root_dir", str(folder), "--trainer.max_steps", str(steps)],
            *["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"],
            *["--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"],
            *["--model.init_args.pretrained", str(pretrained), "--data.init_args.resolution", "16"],
            *["--data.init_args.path", str(images)],
            *(word for name, value in more.items() for word in (f"--data.init_args.{name}", value)),
        ]
    )


def test_stable_diffusion_with_lora(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run(
        ["sd15_lora"],
        images=write_folder(30),
        pretrained=pipeline_folder,
        folder=folder,
        steps=2,
        heldout_fraction="0.3",
        families="off",
    )
    written = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert (written["lora"]["rank"], written["lora"]["alpha"], written["learning_rate"]) == (16, 16, 1e-4)
    weights = load_file(folder / FILE)
    assert weights and all(name.startswith("unet.") for name in weights)
    assert any(bool(value.any()) for name, value in weights.items() if "lora_B" in name)
    StableDiffusionPipeline.from_pretrained(pipeline_folder).load_lora_weights(folder)
    evaluate(["attention", "--run", str(folder), "--steps", "2", "--prompts", "a b"])
    assert (folder / "evaluation" / "report.html").is_file()


def test_twelve_pictures_with_t_lora(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, folder = write_folder({f"{letter}.png": letter for letter in "abcdefghijkl"}), tmp_path / "run"
    run(["dreambooth_lora", "lora/t_lora"], images=images, pretrained=pipeline_folder, folder=folder, steps=2)
    assert "on edited copies of them" in capsys.readouterr().out
    with safe_open(folder / FILE, framework="pt") as file:
        assert json.loads(file.metadata()["memtrain_timestep_rank"]) == {"minimum": 32, "exponent": 1.0}
        assert {file.get_tensor(name).shape[0] for name in file.keys() if "lora_A" in name} == {64}  # noqa: SIM118
    evaluate(["attention", "--run", str(folder), "--steps", "2", "--prompts", "a b"])
    assert FILE in (folder / "evaluation" / "attention" / "attention.json").read_text(), (
        "sampled with ranks masked by timestep"
    )
