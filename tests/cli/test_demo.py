"""The demo: its settings, where it goes on, and what it says at its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import memtrain.cli
import memtrain.cli.training
from memtrain.cli import command
from memtrain.cli.demo import Demo, demo, summary
from memtrain.files.yaml_file import read_mapping
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["memtrain"])


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of training and evaluation, which leave what they would leave."""
    calls: list[list[str]] = []

    def train(words: list[str]) -> None:
        calls.append(words)
        folder = Path(words[2]).parent
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
        if len(calls) == 1:
            sys.exit(143)
        (folder / ".training_ended").write_text("750\n")

    def evaluate(words: list[str]) -> None:
        calls.append(words)
        write_results(Path(words[2]))

    monkeypatch.setattr(memtrain.cli.training, "train", train)
    monkeypatch.setattr(memtrain.cli, "evaluate", evaluate)
    return calls


def write_results(run: Path, **changed: Any) -> None:
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    flags = {"planted_flagged": 9, "planted_missed": 1, "unique_flagged": 2, "unique_not_flagged": 1079}
    results = {
        "verdict": {"level": "unjudged", "text": "It cannot be judged.", "reasons": []},
        "training": {"flags": {**flags, "first_flagged_step": {"min": 16}}},
        "counts": {"pictures": {"n": 125, "reproduced": 1, "interval": [0.0014, 0.0439]}},
        **changed,
    }
    (run / "evaluation" / "results.json").write_text(json.dumps(results))


def test_settings_are_the_shipped_ones_with_all_files_in_one_folder() -> None:
    shipped = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    found = Demo(Path("shown"), 750, False).settings()
    assert found["data"]["init_args"] == {**shipped["data"]["init_args"], "scan": {"folder": None}}
    assert found["model"] == shipped["model"]
    assert found["trainer"]["default_root_dir"] == "shown"
    assert "runs/" not in json.dumps(found)
    kinds = [one["class_path"] for one in found["trainer"]["callbacks"]]
    assert kinds == [one["class_path"] for one in shipped["trainer"]["callbacks"]]


def test_a_stopped_demo_goes_on_and_a_finished_part_is_not_done_again(
    called: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        demo([])
    assert ended.value.code == 143
    shown = capsys.readouterr()
    assert "written to runs/tiny." in shown.out
    assert "The same demo command goes on" in shown.err
    demo([])
    demo([])
    config = str(Path("runs/tiny/demo.yaml"))
    assert called == [
        ["fit", "--config", config],
        ["fit", "--config", config, "--ckpt_path", "last"],
        ["measure", "--run", "runs/tiny"],
        ["measure", "--run", "runs/tiny"],
    ]
    assert "Report: runs/tiny/evaluation/report.html" in capsys.readouterr().out


def test_a_short_look_has_its_own_folder_and_says_that_it_is_short(
    called: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    called.append([])
    demo(["--fast", "--steps", "8"])
    settings = read_mapping(Path("runs/tiny_fast/demo.yaml"))
    assert settings["trainer"]["max_steps"] == 8
    assert settings["trainer"]["callbacks"][0]["init_args"]["reference"] == "first_visit"
    shown = capsys.readouterr().out
    assert shown.count("short look") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "mine"], "mine holds a run that is no demo"),
        (["--output", "other"], "other holds a demo with other settings"),
    ],
)
def test_folders_of_other_runs_are_left_as_they_are(words: list[str], said: str, called: list[list[str]]) -> None:
    Path("mine/checkpoints").mkdir(parents=True)
    Path("mine/checkpoints/last.ckpt").write_bytes(b"")
    Path("other").mkdir()
    Path("other/demo.yaml").write_text("trainer: {max_steps: 3}\n")
    with pytest.raises(SystemExit, match=said):
        demo(words)
    assert not called


def test_an_impossible_number_of_steps_is_a_misuse(called: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo(["--steps", "0"])
    assert ended.value.code == 2
    assert "steps=0" in capsys.readouterr().err
    assert not called


def test_a_refusal_is_told_to_other_programs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/tiny/checkpoints").mkdir(parents=True)
    Path("runs/tiny/checkpoints/last.ckpt").write_bytes(b"")
    with pytest.raises(SystemExit):
        command.main(["demo", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_status"], told["error"]["found"]) == (1, "runs/tiny holds a run that is no demo")


def test_files_of_the_current_folder_do_not_replace_the_shipped_ones() -> None:
    for name in ("configs/tiny.yaml", "assets/clipart-pd.tar", "tiny"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("seed_everything: 1\n")
    found = Demo(Path("run"), 750, False).settings()
    assert found["data"]["init_args"]["path"] == str(ROOT / "assets/clipart-pd.tar")
    assert found["data"]["init_args"]["duplicates"]["only_in"] == str(ROOT / "assets/clipart-pd.tar")
    assert found["model"]["init_args"]["pretrained"] == "assets/tiny-sd"


def test_the_folder_of_a_demo_may_be_spelled_otherwise(
    called: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        demo(["--output", "ro/x"])
    monkeypatch.chdir("ro")
    Path("assets").mkdir()
    Path("assets/clipart-pd.tar").write_bytes(b"")
    demo(["--output", "x"])
    assert called[1][-1] == "last"


def test_the_end_says_in_two_sentences_what_the_report_says() -> None:
    write_results(Path("run"))
    assert summary(Path("run")).splitlines() == [
        "Report: run/evaluation/report.html",
        "The training flagged 9 of 10 planted pictures, the first at step 16, and 2 of 1,081 others.",
        "The finished model brings back 1 of 125 training pictures that were asked for (0.1 % to 4.4 % with 95 % "
        "confidence); the report's answer is: May it be released? The model cannot be "
        "judged on this evidence.",
    ]


def test_a_run_without_flags_and_without_an_interval_has_an_end_too() -> None:
    write_results(Path("run"), training=None, counts={"pictures": {"n": 0, "reproduced": 0, "interval": None}})
    assert len(summary(Path("run")).splitlines()) == 2
