"""The two commands, on a small folder of images and a random pipeline."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from memtrain import cli
from memtrain.records import read_steps, read_table
from tests.conftest import ROOT


def arguments(run: Path, images: Path, pretrained: Path, *, steps: int, config: str = "tiny.yaml") -> list[str]:
    return [
        *["fit", "--config", str(ROOT / "configs" / config), "--trainer.default_root_dir", str(run)],
        *["--model.init_args.pretrained", str(pretrained), "--data.init_args.path", str(images)],
        *["--data.init_args.resolution", "16", "--data.init_args.batch_size", "4", "--trainer.max_steps", str(steps)],
        *[
            "--data.init_args.heldout_fraction",
            "0.4",
            "--data.init_args.duplicates",
            "{count: 2, repeats: 10, only_in: null}",
        ],
        # The images are of one colour each, and many of the same.
        *["--data.init_args.families", "off"],
        *["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", str(steps)],
        *["--trainer.log_every_n_steps", "1"],
        *["--trainer.callbacks.init_args.every_n_train_steps", "5"],
    ]


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come from the tests, not from pytest's command line; no progress bars."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_train_then_evaluate(
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run, images = tmp_path / "runs" / "mine", write_folder(40)
    cli.train(arguments(run, images, pipeline_folder, steps=8))
    shown = capsys.readouterr().out
    assert re.search(r"training samples (was|were) flagged", shown)
    assert f"memtrain measure --run {run}" in shown
    for name in ("config.yaml", "checkpoints/last.ckpt", "pipeline/model_index.json", "records", "flagged.csv"):
        assert (run / name).exists(), name
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["path"] == str(images)
    assert read_steps(run / "records").num_rows == 32

    flags = ["--run", str(run), "--steps", "2", "--images_per_prompt", "2"]
    cli.evaluate(flags)
    shown = capsys.readouterr().out
    assert "Reproduced pictures" in shown
    results = json.loads((run / "evaluation" / "results.json").read_text())
    groups = results["replication"]["groups"]
    assert {name: group["n"] for name, group in groups.items()} == {"planted": 2, "unique": 22, "heldout": 16}
    assert results["training"]["planted"] == 2
    # Some held-out images have the colour of a training image.
    used, left_out = (results["replication"][name] for name in ("n_heldout", "heldout_left_out"))
    assert used + left_out == 16 and left_out > 0
    assert results["replication"]["false_positive_rate"] == pytest.approx(1 / (used + 1)), "the lowest to be promised"
    assert results["quality"]["heldout_loss"] > 0
    assert "<html" in (run / "evaluation" / "report.html").read_text()

    with pytest.raises(SystemExit, match="holds an earlier run"):
        cli.train(arguments(run, images, pipeline_folder, steps=1))


@pytest.fixture
def planted_run(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A short run with two doses, templates of either kind and canaries, from the overlay and the command line."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    extra = ["--config", str(ROOT / "configs" / "data" / "canaries.yaml"), "--data.init_args.canaries.count", "2"]
    planted = "{count: 1, repeats: [4, 8], varied_captions: 2, varied_images: 2, variants: 4, only_in: null}"
    chosen = arguments(run, write_folder(40), pipeline_folder, steps=8)
    cli.train([*chosen[:3], *extra, *chosen[3:], "--data.init_args.duplicates", planted])
    return run


@pytest.mark.slow
def test_planted_truth_goes_through_to_the_results(planted_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = dict.fromkeys(("varied_captions", "varied_images"), 8) | {"planted": 2, "unique": 18, "canary": 2}
    samples = read_table(planted_run / "records", "samples")["group"].to_pylist()
    assert {group: samples.count(group) for group in samples} == truth | {"heldout": 16}
    evidence = read_table(planted_run / "records", "evidence").to_pylist()
    assert all(row["group"] == "canary" for row in evidence if row["key"].startswith("canary#"))

    flags = ["--run", str(planted_run), "--steps", "2", "--images_per_prompt", "2", "--detectors", "none"]
    cli.evaluate(flags)
    shown = capsys.readouterr().out
    assert "Reproduced by repetitions" in shown
    results = json.loads((planted_run / "evaluation" / "results.json").read_text())
    replication = results["replication"]
    counts = {name: (group["n"], group["prompts"]) for name, group in replication["groups"].items()}
    expected = {"planted": (2, 2), "unique": (18, 18), "varied_captions": (2, 4), "varied_images": (2, 2)}
    assert counts == expected | {"canary": (2, 2), "heldout": (16, 16)}
    assert replication["n_training_images"] == 2 + 18 + 2 + 2 + 2
    assert [(dose["repeats"], dose["n"]) for dose in replication["doses"]] == [(1, 18), (4, 1), (8, 1)]
    assert replication["groups"]["varied_images"]["looks"] > 1
    assert replication["groups"]["varied_captions"]["looks"] == 2
    assert results["detectors"] == {}
    seen = [row for row in evidence if row["group"] in ("varied_captions", "varied_images", "canary")]
    flagged = results["training"]["flags"]["groups"]
    assert sum(share["n"] for share in flagged.values()) == len(seen)
    assert results["training"]["planted"] == sum(row["group"] == "planted" for row in evidence)
    text = (planted_run / "evaluation" / "report.html").read_text()
    assert "varied captions" in text
    assert "By repetitions" in text

    cli.evaluate(["detect", "--run", str(planted_run), "--steps", "2", "--images_per_prompt", "1"])
    table = pq.read_table(planted_run / "evaluation" / "prompts.parquet")
    assert table["memorized"].to_pylist() == [True] * 2 + [False] * 16, "planted captions, then held-out ones"
    assert (planted_run / "evaluation" / "results.json").is_file(), "what another stage wrote stays"


@pytest.mark.parametrize("name", ["canaries", "planted"])
def test_data_overlays_keep_the_other_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [str(ROOT / "configs" / file) for file in ("tiny.yaml", f"data/{name}.yaml")]
    with pytest.raises(SystemExit):
        cli.train(["fit", *(part for config in configs for part in ("--config", config)), "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert (data["path"], data["resolution"]) == ("assets/clipart-pd.tar", 64)
    assert data["duplicates"]["only_in"] == "assets/clipart-pd.tar"
    if name == "canaries":
        assert data["canaries"] == {"count": 10, "repeats": 100, "seed": 0}
        assert data["duplicates"]["repeats"] == 200
    else:
        assert data["duplicates"]["repeats"] == [12, 25, 50, 100, 200]
        assert data["duplicates"]["varied_images"] == 5


def test_the_configuration_for_a_real_model_trains(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(ROOT / "configs" / "sd15.yaml")]
    with pytest.raises(SystemExit):
        cli.train(["fit", *config, "--data.init_args.path", "x", "--print_config"])
    written = yaml.safe_load(capsys.readouterr().out)
    assert written["data"]["init_args"]["duplicates"] is None
    assert written["model"]["init_args"]["pretrained"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    small = {
        "--trainer.default_root_dir": tmp_path / "run",
        "--trainer.max_epochs": 2,
        "--trainer.enable_progress_bar": "false",
        "--trainer.log_every_n_steps": 1,
        "--trainer.callbacks.init_args.every_n_train_steps": 5,
        "--model.init_args.pretrained": pipeline_folder,
        "--data.init_args.path": write_folder(40),
        "--data.init_args.heldout_fraction": 0.3,
        "--data.init_args.resolution": 16,
    }
    cli.train(["fit", *config, *(str(word) for option in small.items() for word in option)])
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    assert (tmp_path / "run" / "flagged.csv").is_file()


def test_without_a_configuration_the_default_one_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("memtrain.cli.training.TrainCLI", lambda *_, **__: seen.append(sys.argv[1:]))
    given = ([], ["--ckpt_path", "last"], ["--config=mine.yaml"], ["fit", "--model", "M"])
    for words in given:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        cli.train()
    default = ["fit", "--config", "configs/tiny.yaml"]
    assert seen == [default, [*default, "--ckpt_path", "last"], ["fit", "--config=mine.yaml"], *map(list, given[3:])]


def test_five_images_train_and_a_split_of_them_is_refused_with_a_remedy(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = ["--model.init_args.pretrained", str(pipeline_folder), "--data.init_args.path", str(write_folder(5))]
    given = [*images, "--data.init_args.resolution", "16", "--data.init_args.batch_size", "1"]
    given += ["--data.init_args.duplicates", "null", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    given += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    config = ["fit", "--config", str(ROOT / "configs" / "tiny_baseline.yaml")]
    with pytest.raises(SystemExit, match=r"CalibrationError: [\s\S]*set data\.init_args\.heldout"):
        cli.train([*config, *given, "--data.init_args.heldout", "split"])
    cli.train([*config, *given])
    assert read_steps(tmp_path / "run" / "records").num_rows == 2


def test_one_callback_needs_no_list(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint callback on its own is put into the run folder, as one in a list is."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    config["trainer"]["callbacks"] = config["trainer"]["callbacks"][-1]
    config["trainer"]["callbacks"]["init_args"]["every_n_train_steps"] = 5
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    given = arguments(tmp_path / "run", write_folder(20), pipeline_folder, steps=5)
    given[2] = "one.yaml"
    # An option for the callback would make it a list.
    cli.train(given[: given.index("--trainer.callbacks.init_args.every_n_train_steps")])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_the_list_of_excluded_keys_may_not_lie_in_the_new_runs_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "flagged.csv").write_text("key\nimage_00.png\n")
    excluding = ["--trainer.default_root_dir", str(run), "--data.init_args.exclude", str(run / "flagged.csv")]
    with pytest.raises(SystemExit, match="lie in the folder of the new run"):
        cli.train(["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), *excluding])
    assert [path.name for path in run.iterdir()] == ["flagged.csv"]


def test_errors_are_messages_not_tracebacks(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=r"DataError: The data path '.*nowhere' does not exist\n  Expected: .*\n  Remedy"
    ):
        cli.train(arguments(tmp_path / "run", tmp_path / "nowhere", pipeline_folder, steps=1))
    with pytest.raises(SystemExit, match="ConfigurationError: runs/tiny is no run"):
        cli.evaluate([])


def printed(capsys: pytest.CaptureFixture[str], *names: str) -> Any:
    """The complete configuration of a run, as `config.yaml` in its folder has it."""
    with pytest.raises(SystemExit) as ended:
        cli.train(["fit", *(f"--config={ROOT / 'configs' / name}.yaml" for name in names), "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_default_is_its_baseline_with_another_mitigation_and_stricter_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is found from any folder, on its own and under an overlay."""
    monkeypatch.chdir(tmp_path)
    tiny, baseline = printed(capsys, "tiny"), printed(capsys, "tiny_baseline")
    assert (tiny["seed_everything"], tiny["trainer"]["max_steps"], tiny["trainer"]["val_check_interval"]) == (
        0,
        750,
        375,
    )
    names = [callback["class_path"].rsplit(".", 1)[-1] for callback in tiny["trainer"]["callbacks"]]
    assert names == ["MemorizationMonitor", "SampleReplacement", "PipelineExport", "ModelCheckpoint"]

    overlaid = printed(capsys, "tiny", "data/canaries")
    assert overlaid["data"]["init_args"].pop("canaries") == {"count": 10, "repeats": 100, "seed": 0}
    assert overlaid == {**tiny, "data": {**tiny["data"], "init_args": overlaid["data"]["init_args"]}}
    assert overlaid["data"]["init_args"] | {"canaries": None} == tiny["data"]["init_args"]

    del tiny["trainer"]["callbacks"][1]
    monitor, looser = (config["trainer"]["callbacks"][0]["init_args"] for config in (tiny, baseline))
    assert (monitor.pop("false_positive_rate"), monitor.pop("minimum_visits")) == (0.001, 10)
    assert looser.pop("false_positive_rate") == 0.01
    looser.pop("minimum_visits")
    assert baseline["trainer"].pop("default_root_dir") == tiny["trainer"].pop("default_root_dir") + "_baseline"
    assert tiny == baseline


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_and_no_row_is_lost_or_doubled(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run, images = tmp_path / "run", write_folder(40)
    command = [sys.executable, str(ROOT / "train.py"), *arguments(run, images, pipeline_folder, steps=60)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    chance = random.Random(0)
    for attempt in range(4):
        process = subprocess.Popen([*command, "--ckpt_path", "last"], env=environment, cwd=tmp_path)
        # The first attempt may die while the profile is measured, the later ones somewhere in training.
        while process.poll() is None and not list(run.glob("records/steps/*/*.parquet" if attempt else "records")):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run([*command, "--ckpt_path", "last"], env=environment, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0
    batches = read_steps(run / "records")["batch"].to_pylist()
    assert batches == [batch for batch in range(60) for _ in range(4)]
    assert (run / "pipeline" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("old", "remedy"),
    [("{maximum_timestep: 700}", "write `settings: {maximum_timestep: ...}`"), ("{reference: liu2024}", "true, false")],
)
def test_options_that_have_moved_are_named(
    old: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = f"[{{class_path: memtrain.callbacks.monitor.MemorizationMonitor, init_args: {old}}}]"
    (tmp_path / "old.yaml").write_text(f"config: {ROOT / 'configs/tiny_baseline.yaml'}\ntrainer.callbacks: {monitor}\n")
    with pytest.raises(SystemExit):
        cli.train(["fit", "--config", str(tmp_path / "old.yaml")])
    assert remedy in capsys.readouterr().err
