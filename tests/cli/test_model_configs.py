"""Every configuration of a family, with configs/smoke.yaml, trains two steps of a small random model of its kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from memtrain import cli
from memtrain.records import read_steps
from memtrain.training.pipelines.find import families
from tests.conformance.pipelines import pipeline_of
from tests.conftest import ROOT

KINDS = {
    "sd15": "unet",
    "sdxl_lora": "sdxl",
    "sd3_lora": "sd3",
    "flux_lora": "flux",
    "pixart": "pixart",
    "sana": "sana",
}
"""Configurations, and which small pipeline stands in for their model."""


@pytest.fixture
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", KINDS)
def test_a_configuration_trains_two_steps(name: str, quiet_place: Path, write_folder: Callable[..., Path]) -> None:
    pipeline_of(KINDS[name]).save_pretrained(quiet_place / "tiny")
    cli.train(
        [
            *["fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--config", str(ROOT / "configs/smoke.yaml")],
            *["--trainer.default_root_dir", "run", "--model.init_args.pretrained", "tiny"],
            *["--data.init_args.path", str(write_folder(60)), "--data.init_args.heldout_fraction", "0.4"],
            *["--data.init_args.resolution", "32" if name == "sana" else "16"],
        ]
    )
    rows = read_steps(quiet_place / "run" / "records")
    assert rows.num_rows == 4
    assert all(value == value for value in rows["denoising_loss"].to_pylist())
    assert (quiet_place / "run" / "pytorch_lora_weights.safetensors").is_file() == (name.endswith("lora") or name == "sana")


def test_every_family_has_a_configuration() -> None:
    trained = {type(pipeline_of(kind)).__name__ for kind in KINDS.values()}
    for family in families():
        assert set(family.classes) & trained, family


@pytest.mark.parametrize("name", KINDS)
def test_settings_have_a_source(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines() if line.startswith("#"))
    assert "examples/" in head or "preset" in head or name == "sd15"
    assert json.dumps(yaml.safe_load(text)["data"]["init_args"]["cache_latents"]) == "true"
