"""Stages are found by walking the package, and the one that CONTRIBUTING.md shows works as it stands there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from memtrain import cli
from memtrain.errors import ConfigurationError
from memtrain.evaluation import stages
from memtrain.evaluation.stages.base import stage_class, stage_names
from tests.conftest import ROOT


@pytest.fixture
def brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that CONTRIBUTING.md describes, found beside the others."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text[text.index("## Adding a stage") : text.index("## Import arrows")]
    stage, section = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    folder = tmp_path / "stages" / "brightness"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text('"""The stage `brightness`."""\n')
    (folder / "stage.py").write_text(stage)
    (folder / "section.py").write_text(section)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(folder.parent)])
    for name in ("", ".stage", ".section"):
        monkeypatch.delitem(sys.modules, f"{stages.__name__}.brightness{name}", raising=False)


def test_the_stage_of_the_guide_is_a_subcommand_with_a_section(
    brightness: None,
    pipeline_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    cli.evaluate(["--help"])
    assert re.search(r"brightness +Measure how bright the images of prompts are\.", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        cli.evaluate(["brightness", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--darkest DARKEST brightness from 0 to 255 below which an image counts as dark" in shown
    options = ["--model", str(pipeline_folder), "--prompts", "a cat", "--steps", "2", "--images_per_prompt", "2"]
    cli.evaluate(["brightness", *options, "--darkest", "256", "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "brightness.json").read_text(encoding="utf-8"))
    assert 0 < results["mean"] < 255 and results["dark"] == 2
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ">Brightness</h2>" in report and "2 dark images." in report


@pytest.mark.parametrize("name", stage_names())
def test_every_stage_says_what_it_does(name: str) -> None:
    kind = stage_class(name)
    assert kind.__name__.lower() == name
    assert (kind.__doc__ or "").splitlines()[0].endswith(".")
    assert (Path(stages.__path__[0]) / name / "section.py").is_file()


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="There is no stage 'measures'"):
        stage_class("measures")
