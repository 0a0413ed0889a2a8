"""`evaluate.py mitigate` from the command line to its files, with a mitigation from a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from memtrain import cli
from memtrain.inference.attention_masking import AttentionMasking
from tests.conftest import ROOT

OVERLAY = ROOT / "configs" / "inference" / "attention_masking.yaml"


def test_prompts_of_a_model_with_a_mitigation_and_then_their_attention(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("caption,memorized\na cat,1\nthe dogs,0\n", encoding="utf-8")
    options = {
        "--config": OVERLAY,
        "--mitigation.c1": 2,
        "--model": pipeline_folder,
        "--prompts": prompts,
        "--steps": 2,
        "--images_per_prompt": 1,
        "--output": tmp_path / "out",
    }
    cli.evaluate(["mitigate", *(str(part) for option in options.items() for part in option)])
    for mitigating in ("--config", "--mitigation.c1"):
        options.pop(mitigating)
    cli.evaluate(["attention", "--most", "1", *(str(part) for option in options.items() for part in option)])
    results = json.loads((tmp_path / "out" / "mitigation.json").read_text(encoding="utf-8"))
    assert results["mitigation"] == repr(AttentionMasking(c1=2.0))
    assert (tmp_path / "out" / "attention" / "entropy.png").is_file()
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Mitigation while sampling" in report and "Attention to text" in report, "of a model without a run"
    text = capsys.readouterr().out
    assert "without and with" in text and "Reproduction was not measured" in text and "entropy.png" in text


def test_the_overlay_is_the_default() -> None:
    settings = yaml.safe_load(OVERLAY.read_text(encoding="utf-8"))["mitigation"]
    assert settings["class_path"] == f"{AttentionMasking.__module__}.AttentionMasking"
    assert AttentionMasking(**settings["init_args"]) == AttentionMasking()
