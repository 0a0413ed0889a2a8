"""Every mitigation, found by walking the package: its overlay, and a run through the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from memtrain import cli
from memtrain.monitoring.mitigation import Mitigation
from memtrain.records import read_steps
from tests.conformance.mitigation_runs import mitigations, overlay
from tests.conftest import ROOT

EVERY = pytest.mark.parametrize("kind", mitigations(), ids=lambda kind: kind.__name__)


@EVERY
def test_its_overlay_adds_it_and_nothing_else(kind: type[Mitigation]) -> None:
    content = yaml.safe_load(overlay(kind).read_text(encoding="utf-8"))
    assert list(content) == ["trainer"]
    (callback,) = content["trainer"]["callbacks+"]
    assert callback["class_path"] == f"{kind.__module__}.{kind.__name__}"
    kind(**callback["init_args"])


@EVERY
def test_it_trains_through_the_command_line(
    kind: type[Mitigation],
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    cli.train(
        [
            *["fit", "--config", str(ROOT / "configs" / "tiny_baseline.yaml"), "--config", str(overlay(kind))],
            *["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "3"],
            *["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "3"],
            *["--model.init_args.pretrained", str(pipeline_folder), "--data.init_args.path", str(write_folder(24))],
            *["--data.init_args.resolution", "16", "--data.init_args.batch_size", "4"],
            *["--data.init_args.heldout_fraction", "0.4"],
        ]
    )
    rows = read_steps(tmp_path / "run" / "records")
    assert rows.num_rows == 12
    assert min(rows["weight"].to_pylist()) >= 0
