"""Which stages run, in which order, and what is refused before a model is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from memtrain import cli
from memtrain.cli.stages import STAGES, StageInput, chosen_shard, chosen_stages
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.shards import Shard


def choose(stages: list[str] | None, *, model: str | None = None, prompts: str | None = None) -> list[str]:
    return chosen_stages(stages, model=model, prompts=prompts, detectors=True)


def test_a_run_is_measured_and_prompts_of_a_model_are_scored_unless_stages_are_named() -> None:
    assert choose(None) == ["measure"]
    assert choose(None, model="m", prompts="a cat") == ["detect"]
    assert choose(["detect"]) == ["detect"]
    assert chosen_stages("detect", model=None, prompts=None, detectors=True) == ["detect"]
    assert choose(["detect"], prompts="a cat") == ["detect"]


def test_stages_run_in_their_order_and_once() -> None:
    assert choose(["detect", "measure", "detect"]) == ["measure", "detect"]
    assert choose(list(STAGES)) == list(STAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stages [detekt]", "Unknown stages: detekt\\n  Expected: some of measure, detect"),
        ("--stages detekt", "Unknown stages: detekt"),
        ("--stages []", "No stage to run"),
        ("--model nowhere", "model='nowhere', prompts=None"),
        ("--model nowhere --prompts cat --stages [measure]", "without `measure`"),
        ("--prompts cat", "`measure` does not read"),
        ("--attention_plots 2", "attention_plots=2 with the stage `measure` alone"),
        ("--model nowhere --prompts cat --shard 2/2", "names no part of the prompts"),
        ("--stages [measure,detect] --shard 0/2", "measure cannot be shared between processes"),
        ("--model nowhere --prompts cat --bake x", "--bake with the stages detect, of which none reads it"),
        ("--model nowhere --prompts cat --stages [mitigate] --sites *", "--sites with the stages mitigate"),
        ("--run nowhere --clip x", "--clip with the stages measure"),
        ("--model nowhere --prompts cat --stages [calibrate,localize]", "of which nothing is known"),
        ("--model nowhere --prompts cat --detectors false", "detectors=False leaves nothing to score prompts with"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(options: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.evaluate(options.split())


def test_localize_hands_its_settings_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def localize(pipeline: Any, prompts: Any, **settings: Any) -> dict[str, Any]:
        seen.update(settings, pipeline=pipeline, prompts=prompts)
        return {"found": 1}

    monkeypatch.setattr("memtrain.evaluation.stages.localize.localize.localize", localize)
    monkeypatch.setattr("memtrain.evaluation.stages.localize.section.print_localization", lambda results, folder: None)
    given: dict[str, Any] = {"pipeline": 1, "prompts": 2, "own_images": 3, "output": tmp_path, "model": "m"}
    given |= {"seeds": (4,), "steps": 5, "guidance_scale": 6.0, "batch_size": 7}
    stage = StageInput(**given, detectors=(), sites="*", contribution=0.4, bake="baked", false_positive_rate=0.2)
    assert STAGES["localize"](stage) == {"found": 1}
    assert seen.pop("settings").sites == "*"
    assert seen == {**given, "contribution": 0.4, "bake": "baked", "false_positive_rate": 0.2}


def test_the_remedy_names_what_exists() -> None:
    with pytest.raises(ConfigurationError, match=r"--stages '\[detect\]'"):
        choose(["measure"], model="m", prompts="a cat")


def test_a_job_array_shares_prompts_and_leaves_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert chosen_shard(None, stages=["detect"]) == Shard(1, 3)
    assert chosen_shard(None, stages=["measure"]) == Shard(), "each task of such an array has a run of its own"
    assert chosen_shard("0/1", stages=["measure", "detect"]) == Shard()
    assert chosen_shard("merge", stages=["detect"]) is None


def test_detectors_are_named_by_class_path(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "detectors:\n  - class_path: memtrain.detectors.guidance_norm.GuidanceNorm\n    init_args: {steps: 2}\n"
    )
    options = ["--model", str(pipeline_folder), "--prompts", "a cat", "--steps", "3", "--output", str(tmp_path / "out")]
    cli.evaluate(["--config", str(overlay), *options])
    table = pq.read_table(tmp_path / "out" / "prompts.parquet")
    assert table.column_names == ["prompt", "memorized", "prompt_length", "guidance_norm_2"]
    assert "One prompt alone shows nothing" in " ".join(capsys.readouterr().out.split())
