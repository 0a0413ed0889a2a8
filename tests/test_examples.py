"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from memtrain.records import read_steps, read_table
from tests.conftest import ROOT


@pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")
def test_a_loop_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("own_loop", ROOT / "examples" / "own_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    guard = module.main(folder=str(tmp_path), steps=10)
    assert guard.host.step == 10
    rows = read_steps(tmp_path / "records")
    assert len(rows) == 10 * 8
    assert any(weight == 0 for weight in rows["weight"].to_pylist())
    assert all(caption for caption in read_table(tmp_path / "records", "evidence")["caption"].to_pylist())
    assert "repeated images flagged" in capsys.readouterr().out
