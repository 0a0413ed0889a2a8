"""A run is trained again from before it learnt what it flagged, without that."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from memtrain import cli
from memtrain.cli.rewind import make_plan
from memtrain.data.selection import read_keys
from memtrain.errors import ConfigurationError
from memtrain.records import read_steps
from tests.cli.test_training import arguments
from tests.conftest import ROOT

KEEPING = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"save_top_k": -1, "every_n_train_steps": 4},
}


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run is kept for all tests of this file."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def run(
    finished: Path, pipeline_folder: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A finished run of 16 steps with two planted images, which kept a checkpoint every four steps."""
    monkeypatch.chdir(finished)
    run = finished / "mine"
    if not run.exists():
        images = finished / "images"
        shutil.copytree(write_folder(40), images)
        monitor = {"class_path": "memtrain.callbacks.monitor.MemorizationMonitor"}
        config = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
        config["trainer"]["callbacks"] = [monitor, KEEPING]
        (finished / "kept.yaml").write_text(yaml.safe_dump(config))
        given = arguments(run, images, pipeline_folder, steps=16)
        given[2] = str(finished / "kept.yaml")
        cut = given.index("--trainer.callbacks.init_args.every_n_train_steps")
        cli.train([*given[:cut], *given[cut + 2 :]])
    return run


def flag(run: Path, keys: list[str]) -> None:
    with (run / "flagged.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["key", "caption"], *([key, ""] for key in keys)])


def planted(run: Path) -> list[str]:
    """The two keys that are visited most."""
    keys = read_steps(run / "records")["key"].to_pylist()
    return sorted(set(keys), key=keys.count)[-2:]


def test_from_the_newest_checkpoint_that_holds_little_of_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag(run, planted(run))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    cli.train(["rewind", "--run", str(run), "--output", str(new), "--remaining", "0.6"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "the run stays as it is"

    said = json.loads((new / "rewind.json").read_text())
    visits = [row["step"] for row in read_steps(run / "records").to_pylist() if row["key"] in planted(run)]
    allowed = [step for step in (4, 8, 12, 16) if sum(visit < step for visit in visits) <= 0.6 * len(visits)]
    assert said["step"] == max(allowed)
    assert said["visits_of_flagged"] == len(visits)
    assert said["visits_before"] == sum(visit < said["step"] for visit in visits)
    assert f"taken up at step {said['step']}" in capsys.readouterr().out

    old, rows = (read_steps(folder / "records").to_pylist() for folder in (run, new))
    assert [row for row in rows if row["step"] < said["step"]] == [row for row in old if row["step"] < said["step"]]
    later = {row["key"] for row in rows if row["step"] >= said["step"]}
    assert later
    assert not later & set(planted(run))
    assert max(row["step"] for row in rows) == 15
    assert read_keys(str(new / "excluded.csv")) == set(planted(run))
    assert not (new / "families").exists(), "what the run's scan found is read again"
    last = max((new / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(last, weights_only=True)["global_step"] == 16


def test_from_the_beginning_where_all_checkpoints_come_too_late(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag(run, planted(run))
    new = tmp_path / "new"
    cli.train(["rewind", "--run", str(run), "--output", str(new), "--remaining", "0"])
    shown = capsys.readouterr().out
    assert "from its beginning" in shown
    assert "save_top_k: -1" in shown
    rows = read_steps(new / "records").to_pylist()
    assert sorted({row["step"] for row in rows}) == list(range(16))
    assert not {row["key"] for row in rows} & set(planted(run))
    assert yaml.safe_load((new / "config.yaml").read_text())["trainer"]["max_steps"] == 16


def test_what_was_excluded_before_stays_excluded(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    config = yaml.safe_load((again / "config.yaml").read_text())
    visited = read_steps(run / "records")["key"].to_pylist()
    absent = next(f"image_{number:02}.png" for number in range(40) if f"image_{number:02}.png" not in visited)
    config["data"]["init_args"]["exclude"] = [absent]
    (again / "config.yaml").write_text(yaml.safe_dump(config))
    flag(again, planted(run))
    assert set(make_plan(again, remaining=0.1).excluded) == {absent, *planted(run)}


def test_an_interrupted_run_is_judged_by_its_checkpoint(run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / "flagged.csv").unlink()
    newest = max((cut / "checkpoints").glob("*step=16.ckpt"))
    state = torch.load(newest, weights_only=True)
    (monitor,) = [part for name, part in state["callbacks"].items() if "MemorizationMonitor" in name]
    monitor["calibration"]["first_flagged"] = {planted(run)[0]: 9}
    torch.save(state, newest)
    assert planted(run)[0] in make_plan(cut, remaining=0.1).excluded


def test_there_has_to_be_something_to_take_back(run: Path, tmp_path: Path) -> None:
    flag(run, [])
    with pytest.raises(ConfigurationError, match="nothing to take back"):
        make_plan(run, remaining=0.1)
    with pytest.raises(SystemExit, match="is no run"):
        cli.train(["rewind", "--run", str(tmp_path)])
    flag(run, planted(run))
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match="exists already"):
        cli.train(["rewind", "--run", str(run), "--output", str(tmp_path / "there")])
