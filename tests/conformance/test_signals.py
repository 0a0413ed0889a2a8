"""Every signal, found by walking the package, has an overlay by which a run is flagged by it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import memtrain.signals
from memtrain import cli
from memtrain.records import read_steps
from memtrain.signals.base import Signal
from tests.conftest import ROOT


def signals() -> list[type[Signal]]:
    """Every signal of the package."""
    modules = [
        importlib.import_module(f"memtrain.signals.{e.name}") for e in pkgutil.iter_modules(memtrain.signals.__path__)
    ]
    found = {kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)}
    return sorted(
        (kind for kind in found if issubclass(kind, Signal) and not inspect.isabstract(kind)),
        key=lambda kind: kind.__name__,
    )


@pytest.mark.parametrize("kind", signals(), ids=lambda kind: kind.__name__)
def test_a_run_is_flagged_by_it_with_its_overlay(
    kind: type[Signal],
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = kind.__module__.rsplit(".", 1)[1]
    overlay = ROOT / "configs" / "signals" / f"{name}.yaml"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    cli.train(
        [
            *["fit", "--config", str(ROOT / "configs" / "tiny_baseline.yaml"), "--config", str(overlay)],
            *["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "3"],
            *["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "3"],
            *["--model.init_args.pretrained", str(pipeline_folder), "--data.init_args.path", str(write_folder(24))],
            *["--data.init_args.resolution", "16", "--data.init_args.batch_size", "4"],
            *["--data.init_args.heldout_fraction", "0.4"],
        ]
    )
    rows = read_steps(tmp_path / "run" / "records")
    assert rows.num_rows == 12
    measured = [column for column in rows.column_names if column.startswith(name)]
    assert measured
    assert any(value == value for column in measured for value in rows[column].to_pylist())
    config = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert f"flag_by: {name}" in config
