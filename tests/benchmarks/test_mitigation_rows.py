"""The rows of the ablation: their commands, names and captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from memtrain import cli
from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT


def test_every_command_is_one_that_training_understands(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each row is the setting, its overlay's callback beside those of the baseline, and its own options."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    rows = scripts.mitigation_rows
    scripts.mitigation_rows.write_flagged(tmp_path / "flagged-seed3.csv", ["x"])
    read = 0
    for part, settings in ((rows.ROWS, rows.SETTING), (rows.DOSE_ROWS, rows.DOSE_SETTING)):
        for row in part:
            if rows.missing_overlays(row):
                continue
            arguments = rows.training_arguments(row, 3, folder=tmp_path, setting=settings)
            with pytest.raises(SystemExit) as ended:
                cli.train(["fit", *arguments, "--print_config"])
            assert ended.value.code == 0, row.name
            config = yaml.safe_load(capsys.readouterr().out)
            data = config["data"]["init_args"]
            assert (config["seed_everything"], data["duplicates"]["seed"]) == (3, 3)
            assert data["duplicates"]["count"] == settings["--data.init_args.duplicates.count"]
            assert config["trainer"]["max_steps"] == 900
            names = [entry["class_path"].rsplit(".", 1)[-1] for entry in config["trainer"]["callbacks"]]
            assert names[0] == "MemorizationMonitor"
            for overlay in row.overlays:
                assert overlay.replace("_", "") == names[-1].lower()
            if row.name.startswith("caption_"):
                assert config["trainer"]["callbacks"][-1]["init_args"]["kind"] == row.name.removeprefix("caption_")
            if row.needs_flags:
                assert data["exclude"] == str(tmp_path / "flagged-seed3.csv")
            read += 1
    assert read >= 10


def test_figures_belong_to_a_configuration_with_what_it_builds_on(scripts: Modules) -> None:
    recommended, baseline = (
        scripts.mitigation_rows.identity(row, {})["config"]
        for name in ("recommended", "baseline")
        for row in scripts.mitigation_rows.ROWS
        if row.name == name
    )
    assert recommended["trainer"].pop("default_root_dir") == baseline["trainer"].pop("default_root_dir").split("_")[0]
    assert len(recommended["trainer"].pop("callbacks")) == 1 + len(baseline["trainer"].pop("callbacks"))
    assert recommended == baseline


def test_rows_have_names_of_their_own_and_unknown_ones_are_refused(scripts: Modules) -> None:
    rows = scripts.mitigation_rows
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    assert [row.name for row in rows.chosen(rows.ROWS, ["exclude", "baseline"])] == ["baseline", "exclude"]
    with pytest.raises(ValueError, match="no row is called"):
        rows.chosen(rows.ROWS, ["basline"])


def test_other_captions_are_made_of_an_images_facts(scripts: Modules, tmp_path: Path) -> None:
    facts = {"label": "duck", "colours": ["grey", "white"], "tags": ["cartoon", "bird"]}
    captions = scripts.mitigation_rows.alternative_captions(facts, "a picture of duck")
    assert "a picture of duck" not in captions
    assert "duck in grey and white" in captions
    assert len(set(captions)) == len(captions) == 4
    bare = scripts.mitigation_rows.alternative_captions({"label": "duck", "colours": [], "tags": []}, "x")
    assert len(bare) == len(set(bare)) >= 4
    scripts.mitigation_rows.write_captions(tmp_path / "captions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 1223 * 11
    assert all(line["captions"] for line in lines)
