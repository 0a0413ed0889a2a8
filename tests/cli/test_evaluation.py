"""The command line of `evaluate.py`: its first word is a stage, with options of its own, refused before it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from memtrain import cli
from memtrain.cli import evaluation
from memtrain.cli.evaluation import overview, read_command
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import PromptStage, Stage, StageInput, stage_class, stage_names
from memtrain.evaluation.stages.localize.stage import Localize
from memtrain.evaluation.stages.shards import WHOLE
from tests.conftest import ROOT

SAMPLED = {"images_per_prompt", "seed", "steps", "guidance_scale", "batch_size"}
WEIGHTS = {"sscd", "sscd_convention", "clip", "inception"}
PROMPTS = {"run", "output", "dtype", "model", "lora", "lora_scale", "prompts", "max_prompts"}
SEARCH = {"sites", "published", "settings"}
ENGINE = ("shard", "engine", "engine_address", "engine_tasks")
OPTIONS = {
    "attention": PROMPTS | SAMPLED | {"most", "save_arrays", "offload", *ENGINE},
    "calibrate": PROMPTS | SEARCH | {"export", *ENGINE},
    "compare": {"runs", "output", "level", "resamples", "seed", "pictures"},
    "detect": PROMPTS | SAMPLED | {"detectors", "null", *ENGINE, "offload"},
    "localize": PROMPTS
    | SAMPLED
    | WEIGHTS
    | SEARCH
    | {"statistics", "threshold", "contribution", "probe_steps", "bake", "false_positive_rate", *ENGINE}
    | {"baselines", "baseline_k", "save_images"},
    "measure": SAMPLED
    | WEIGHTS
    | (PROMPTS - {"prompts"})
    | {
        "unique_prompts",
        "false_positive_rate",
        "kid",
        "exposure",
        "detectors",
        "fail_on",
        "compare_all",
        "index",
        *ENGINE,
    }
    | {"data", "heldout", "caption", "size", "group_by", "checkpoints", "copy_measures", "copy_detector", "vision"},
    "metrics": {"output", "generated", "prompts", "original", "unblocked", "real", "copy_detector", *ENGINE}
    | (WEIGHTS - {"sscd"}),
    "mitigate": PROMPTS | SAMPLED | WEIGHTS | {"mitigation", "false_positive_rate", *ENGINE},
    "report": {"of", "redact", "redact_key"},
}


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_every_stage_is_a_subcommand() -> None:
    assert stage_names() == sorted(OPTIONS)
    for name in stage_names():
        assert f"\n  {name} " in overview()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_help_shows_the_options_of_the_stage_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.evaluate([name, "--help", "all"])
    shown = capsys.readouterr().out
    words = {word.strip("[],").removeprefix("--") for word in shown.split() if word.strip("[],").startswith("--")}
    said = {word for word in words if word.replace("_", "").isalpha()}
    assert said - {"help", "config", "print_config", "quiet", "json", "trust"} == OPTIONS[name]
    for option in OPTIONS[name]:
        assert f"--{option}" in shown


def test_help_of_all_stages(capsys: pytest.CaptureFixture[str]) -> None:
    cli.evaluate(["--help"])
    assert capsys.readouterr().out.strip() == overview()


def test_help_waits_for_no_trainer_and_no_other_stage() -> None:
    program = """
import sys
sys.argv = ["evaluate.py", "detect", "--help"]
from memtrain.cli import evaluate
try:
    evaluate()
except SystemExit:
    pass
print([name for name in sys.modules if name == "lightning" or name.startswith("memtrain.evaluation.stages.localize")
       or name in ("memtrain.evaluation.stages.detect.detect", "memtrain.localization.locate")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_a_stage_a_run_is_measured() -> None:
    for words in ([], ["measure"]):
        stage = read_command([*words, "--run", "runs/x", "--steps", "7"])
        assert stage == stage_class("measure")(run="runs/x", **{"steps": 7})
        assert stage.folder == Path("runs/x/evaluation")
    assert read_command([]).run == "runs/tiny"


def test_prompts_without_a_stage_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "m", "--prompts", "p"]
    assert read_command(words) == read_command(["detect", *words])
    assert capsys.readouterr().out.startswith("No stage is named, so detect scores the prompts.")


@pytest.mark.parametrize("words", [["--detectors", "false"], ["--detectors=false"], ["--detectors", "none"]])
def test_no_detectors_in_other_words(words: list[str]) -> None:
    assert read_command(["measure", *words]).detectors == "none"


def test_where_results_go() -> None:
    assert read_command(["detect", "--run", "runs/x"]).folder == Path("runs/x/evaluation")
    for name in ("detect", "mitigate"):
        assert read_command([name, "--model", "a/m", "--prompts", "p"]).folder == Path("runs", name, "m")
    words = ["measure", "--model", "runs/x/pipeline", "--data", "d", "--lora", "a/b.safetensors"]
    assert read_command(words).folder == Path("runs/evaluation/x-b")
    assert read_command(["detect", "--model", "m", "--prompts", "p", "--output", "o"]).folder == Path("o")


@pytest.mark.parametrize("words", [["--dtype", "bfloat16"], ["--precision", "bfloat16"], ["--precision=bfloat16"]])
def test_the_type_of_numbers_has_one_name_and_is_known_by_its_former_one(words: list[str]) -> None:
    assert read_command(["detect", *words]).dtype == "bfloat16"


def test_options_of_sampling_become_one_value() -> None:
    words = "detect --seed 3 --images_per_prompt 2 --steps 5 --guidance_scale 2 --batch_size 6"
    expected = Sampling(seeds=(3, 4), steps=5, guidance_scale=2.0, batch_size=6, by_memory=False)
    assert read_command(words.split()).sampling == expected
    for name in stage_names():
        assert read_command([name]).sampling == Sampling(), f"the defaults of {name} are said elsewhere"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stages [detect]", "a stage is the first word of the command"),
        ("detect --stages=detect", "memtrain detect --run runs/tiny"),
        ("detekt", "There is no stage 'detekt'\\n  Expected: one of attention, calibrate, compare, detect"),
        ("--model ./nowhere --prompts cat", "nowhere"),
        ("--run nowhere --prompts cat", "nowhere is no run"),
        ("detect --model nowhere", "model='nowhere' without prompts"),
        ("detect --model nowhere --prompts cat --shard 2/2", "names no share of the work"),
        ("detect --model nowhere --prompts cat --detectors []", r"detectors=\[\] names no detector"),
        ("detect --model nowhere --prompts cat --images_per_prompt 0", "The sampling settings are invalid"),
        ("localize --model nowhere --prompts cat --shard 0/2 --contribution 0.4", "contributions take seconds"),
        ("measure --run nowhere", "nowhere is no run"),
        ("measure --prompts cat", "memtrain detect"),
        ("detect --run nowhere", "nowhere is no run"),
        ("measure --model assets/tiny-sd", "memtrain measure --model MODEL --data FOLDER"),
        ("--data pictures", "model=None with data='pictures'"),
        ("--caption x --size 64", "caption and size without a model"),
        ("--model m --data d --size 60", "a multiple of 8"),
        ("--model m --data nowhere", "'nowhere' does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(options: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.evaluate(options.split())


@pytest.mark.parametrize(
    "words", ["mitigate --sites *", "measure --bake x", "calibrate --steps 3", "attention --bake x"]
)
def test_options_of_another_stage_are_unknown(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.evaluate(words.split())
    assert ended.value.code == 2
    assert f"There is no option {words.split()[1]}\n" in capsys.readouterr().err


def test_prompts_that_the_stage_refuses_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("caption,memorized\na,0\nb,0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="0 to search"):
        cli.evaluate(["localize", "--model", str(ROOT / "assets/tiny-sd"), "--prompts", str(prompts)])


def test_localize_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def localize(given: StageInput, **settings: Any) -> dict[str, Any]:
        seen.update(settings, given=given)
        return {"found": 1}

    monkeypatch.setattr("memtrain.evaluation.stages.localize.localize.localize", localize)
    monkeypatch.setattr("memtrain.evaluation.stages.localize.screen.print_localization", lambda results, folder: None)
    pipeline: Any = 1
    given = StageInput(pipeline=pipeline, output=tmp_path)
    stage = Localize(sites="*", contribution=0.4, bake="baked", false_positive_rate=0.2, probe_steps=3, clip="c")
    assert stage(given) == {"found": 1}
    search, weights = seen.pop("search"), seen.pop("weights")
    assert (search.settings.sites, search.contribution, weights.clip) == ("*", 0.4, "c")
    assert seen == {"given": given, "bake": "baked", "false_positive_rate": 0.2, "probe_steps": 3} | {
        "baselines": (),
        "baseline_k": 10,
        "save_images": False,
        "shard": WHOLE,
    }


def test_a_job_array_shares_prompts_and_leaves_other_stages_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task of such an array of runs has a run of its own."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    with pytest.raises(ConfigurationError, match="task 7 of 3"):
        read_command(["detect", "--shard", "array"]).check()
    read_command(["detect"]).check()
    read_command(["measure"]).check()


def test_detectors_are_named_by_class_path(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "detectors:\n  - class_path: memtrain.detectors.guidance_norm.GuidanceNorm\n    init_args: {steps: 2}\n"
    )
    options = ["--model", str(pipeline_folder), "--prompts", "a cat", "--steps", "3", "--output", str(tmp_path / "out")]
    cli.evaluate(["detect", "--config", str(overlay), "--null", "none", *options])
    table = pq.read_table(tmp_path / "out" / "prompts.parquet")
    assert table.column_names == ["prompt", "count", "memorized", "prompt_length", "guidance_norm_2"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "One score alone shows nothing" in shown
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in shown
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Detection of memorized prompts" in report and "a cat" in report and str(pipeline_folder) in report


def test_every_detector_that_can_reads_the_prompts(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one image per prompt, those that compare images cannot, and are named with the reason."""
    options = ["--model", str(pipeline_folder), "--prompts", "a cat", "--steps", "3", "--output", str(tmp_path / "out")]
    cli.evaluate(["detect", *options, "--detectors", "all", "--images_per_prompt", "1"])
    results = json.loads((tmp_path / "out" / "detection.json").read_text(encoding="utf-8"))
    assert {"guidance_norm_1", "guidance_norm_all", "memattn_d", "anisotropy", "sharpness"} <= set(results["detectors"])
    assert set(results["left_out"]) == {"noise_similarity", "edge_consistency", "tile_l2_3"}
    assert results["left_out"]["edge_consistency"].endswith("compares the images of a prompt, but there is only one")
    assert "Left out: tile_l2_3. TileL2 looks for 3 images alike among 1" in capsys.readouterr().out


def test_what_a_process_did_in_part_has_no_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Part(PromptStage):
        def __call__(self, given: StageInput) -> dict[str, Any]:
            return {}

    class Nothing:
        def to(self, device: str) -> Nothing:
            return self

    monkeypatch.setattr("memtrain.cli.trained_pipeline.load_pipeline", lambda model, config: Nothing())
    stage: Stage = Part(model="m", prompts="a cat", output=str(tmp_path))
    assert evaluation.run_stage(stage) == {}
    assert [path.name for path in tmp_path.iterdir()] == [".lock-part"]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    words = ["--model", str(ROOT / "assets/tiny-sd"), "--prompts", str(tmp_path / "prompts.txt")]
    with pytest.raises(SystemExit, match="Results cannot be written"):
        cli.evaluate(["detect", *words, "--output", str(tmp_path / "file")])
