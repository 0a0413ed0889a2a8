"""Twelve pictures and a configuration of the repository: the run just works, and says what it did."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memtrain.cli.training import train
from tests.conftest import ROOT

STOP = "callbacks/stop_before_memorization"


@pytest.mark.parametrize("configs", [["few"], ["tiny"], ["tiny_baseline", STOP]], ids=["few", "tiny", "overlay"])
def test_twelve_pictures_are_trained_on_with_nothing_held_out(
    configs: list[str],
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    images, run = write_folder({f"{letter}.png": letter for letter in "abcdefghijkl"}), tmp_path / "run"
    # Configurations name files relative to the repository; the profiles of one of them would go there, too.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    train(
        [
            *["fit", *(word for name in configs for word in ("--config", str(ROOT / "configs" / f"{name}.yaml")))],
            *["--trainer.default_root_dir", str(run), "--trainer.max_steps", "12", "--trainer.limit_val_batches", "0"],
            *["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"],
            *["--model.init_args.pretrained", str(pipeline_folder), "--data.init_args.resolution", "16"],
            *["--data.init_args.path", str(images)],
        ]
    )
    shown = capsys.readouterr().out
    assert "of samples like the 36 held-out ones" in shown
    assert "Loss on the 12 training images" in shown and "on edited copies of them" in shown
    figures = json.loads((run / "records" / "calibration.json").read_text())
    assert (figures["samples"], figures["heldout"]) == (12, 36)
    assert figures["curve"] and {"first_flagged_step", "parting_step"} <= figures.keys()
    assert (run / "pipeline" / "model_index.json").is_file()
