"""The ablation of the mitigations: what is run, resumed and reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.benchmarks.scripts import Modules


def fake_run(scripts: Modules, monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> list[tuple[str, list[str]]]:
    """Replaces training and evaluation; returns the commands that were called, by script."""
    calls: list[tuple[str, list[str]]] = []

    def call(arguments: list[str], *, log: Path | None = None, threads: int | None = None) -> None:
        calls.append((arguments[0], list(arguments)))
        place = Path(arguments[arguments.index("--trainer.default_root_dir" if "fit" in arguments else "--run") + 1])
        if failing and failing in str(place):
            raise scripts.experiment.CommandError("train.py ended with 1\nthe reason")
        if arguments[0] == "train.py":
            assert threads == 1
            (place / "pipeline").mkdir()
            (place / "pipeline" / "model_index.json").write_text("{}")
            scripts.mitigation_rows.write_flagged(place / "flagged.csv", ["planted-b", "planted-a"])
            data = {"init_args": {"exclude": "x.csv", "path": "y"}}
            (place / "config.yaml").write_text(yaml.safe_dump({"data": data}))
            return
        assert (place / "pipeline" / "model_index.json").is_file()
        output = Path(arguments[arguments.index("--output") + 1]) if "--output" in arguments else place / "evaluation"
        output.mkdir()
        monitor = {"class_path": "memtrain.callbacks.monitor.MemorizationMonitor", "init_args": {"x": str(place)}}
        groups = {"planted": {"n": 10, "reproduced": 7, "share": 0.7}}
        content = {
            "replication": {"groups": groups},
            "training": None,
            "quality": {"heldout_loss": 0.1, "kid": {"value": 0.2, "standard_error": 0.01}},
            "config": {
                "trainer": {"callbacks": [monitor], "max_steps": 900},
                "model": {"init_args": {}},
                "data": yaml.safe_load((place / "config.yaml").read_text())["data"],
            },
            "sampling": {},
        }
        (output / "results.json").write_text(json.dumps(content))

    monkeypatch.setattr(scripts.experiment, "call", call)
    return calls


def test_runs_are_resumed_from_the_file_and_from_the_folder(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, script = fake_run(scripts, monkeypatch), scripts.mitigations
    arguments: dict[str, Any] = {
        "seeds": [0, 1],
        "rows": ["baseline", "exclude"],
        "json": str(tmp_path / "figures.json"),
        "folder": str(tmp_path / "runs"),
        "jobs": 2,
    }
    script.main(**arguments)
    assert sorted(name for name, _ in calls) == ["evaluate.py"] * 4 + ["train.py"] * 4
    trained = [words for name, words in calls if name == "train.py"]
    assert all(words[words.index("--ckpt_path") + 1] == "last" for words in trained)
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["rows"]["baseline"]["1"]["flagged_keys"] == ["planted-a", "planted-b"]
    assert str(tmp_path) not in json.dumps(content["rows"]), "no path of a machine"
    with (tmp_path / "runs" / "flagged-seed1.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == ["planted-a", "planted-b"]
    asked = yaml.safe_load((tmp_path / "runs" / "exclude-seed1" / "asked" / "config.yaml").read_text())
    assert asked["data"]["init_args"] == {"exclude": None, "path": "y"}, "the excluded images are asked for"

    calls.clear()
    script.main(**{**arguments, "folder": str(tmp_path / "elsewhere")})
    assert not calls, "finished in the file, whatever the folder"

    (tmp_path / "figures.json").unlink()
    script.main(**arguments)
    assert not calls, "finished in the folder"

    shared = scripts.mitigation_rows.SETTING
    monkeypatch.setitem(shared, "--trainer.max_steps", 1000)
    script.main(**{**arguments, "rows": ["baseline"], "seeds": [0]})
    assert [name for name, _ in calls] == ["train.py", "evaluate.py"], "another setting is another run"
    assert (tmp_path / "runs" / "baseline-seed0-1").is_dir(), "the earlier run is kept"


def test_a_failed_run_is_reported_and_stops_no_other(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_run(scripts, monkeypatch, failing="baseline-seed0")
    with pytest.raises(SystemExit) as ended:
        scripts.mitigations.main(
            seeds=[0, 1],
            rows=["baseline", "recommended", "exclude"],
            json=str(tmp_path / "figures.json"),
            folder=str(tmp_path / "runs"),
        )
    assert "2 run(s) failed" in str(ended.value)
    assert "the reason" in str(ended.value)
    assert "exclude needs the baseline of seed 0" in str(ended.value)
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {name: list(seeds) for name, seeds in rows.items()} == {
        "recommended": ["0", "1"],
        "baseline": ["1"],
        "exclude": ["1"],
    }


def test_timing_measures_each_row_and_trains_nothing_else(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, asked = fake_run(scripts, monkeypatch), []

    class Course:
        def __init__(self, folder: Path, *, steps: int) -> None:
            asked.append(steps)

        def run(self, row: Any) -> None:
            asked.append(getattr(row, "name", row))

    def compare(course: Course, row: Any, *, pairs: int) -> dict[str, Any]:
        asked.append((row.name, pairs))
        return {"seconds_plain": 0.2, "threads": 1, "ratio_median": 1.1, "ratio_interval_95": [1.0, 1.2]}

    monkeypatch.setattr(scripts.mitigation_timing, "Course", Course)
    monkeypatch.setattr(scripts.mitigation_timing, "compare", compare)
    monkeypatch.setattr(scripts.mitigation_timing, "profile_seconds", lambda course: {"seconds": 3.0})
    timing = scripts.mitigations.Timing(pairs=2, steps=16, threads=torch.get_num_threads())
    path = tmp_path / "figures.json"
    scripts.mitigations.main(timing=timing, rows=["recommended"], json=str(path), folder=str(tmp_path / "runs"))
    assert asked == [16, None, "baseline", ("recommended", 2)] and not calls
    assert set(json.loads(path.read_text())["timing"]) == {"profile", "plain", "recommended"}
