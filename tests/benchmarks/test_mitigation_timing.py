"""What a mitigation adds to a step: how it is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT


def test_the_stopwatch_leaves_out_the_first_cycle(scripts: Modules) -> None:
    watch = scripts.mitigation_timing.Stopwatch()
    watch.ends = [100.0 * index for index in range(8)] + [700 + 1.0 * (index + 1) for index in range(16)]
    assert watch.seconds_per_step() == 1.0
    with pytest.raises(ValueError, match="multiple of 8"):
        scripts.mitigation_timing.Course(Path("x"), steps=20)


def test_short_runs_are_timed_with_and_without_a_row(
    scripts: Modules,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
) -> None:
    """On a small random model: plain training has no monitor, the profile is measured once."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["mitigations.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    timing, rows = scripts.mitigation_timing, scripts.mitigation_rows
    small = {
        "--model.init_args.pretrained": pipeline_folder,
        "--data.init_args.path": write_folder(40),
        "--data.init_args.resolution": 16,
        "--data.init_args.batch_size": 4,
        "--data.init_args.heldout_fraction": 0.4,
        "--data.init_args.duplicates.only_in": "null",
        "--data.init_args.duplicates.count": 2,
    }
    monkeypatch.setattr(timing, "training_arguments", partial(rows.training_arguments, setting=small))
    monkeypatch.setattr(timing, "CYCLE", 2)
    seen: list[list[str]] = []
    fit = Trainer.fit

    def fit_and_note(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        seen.append([type(callback).__name__ for callback in trainer.callbacks])
        fit(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", fit_and_note)
    course = timing.Course(tmp_path, steps=2)
    found = timing.compare(course, rows.ROWS[1], pairs=1)
    assert found["ratio_median"] == pytest.approx(found["seconds"] / found["seconds_plain"])
    assert found["ratio_interval_95"] == [found["ratio_median"]] * 2
    assert list((tmp_path / "profiles").rglob("*.parquet"))
    assert len(course._data) == 1, "images are read and encoded once"
    assert "MemorizationMonitor" not in seen[0]
    assert {"MemorizationMonitor", "SampleReplacement"} <= set(seen[1])
    assert not {"PipelineExport", "ModelCheckpoint"} & set(seen[1])
    assert [names[-1] for names in seen] == ["Stopwatch"] * 2
    assert timing.profile_seconds(course)["seconds"] > 0
