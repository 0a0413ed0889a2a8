"""The benchmark of flag rates: every scenario runs, its visits are those that it states, its figures are kept."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from .conftest import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("flag_rates")


def test_duplicates_are_visited_as_often_as_stated(script: ModuleType) -> None:
    scenario = script.Scenario("three", samples=6, duplicates=2, repeats=3, epochs=4, batch=5)
    batches = list(script.visits(scenario, torch.Generator().manual_seed(0)))
    assert torch.cat([rows for _, rows in batches]).bincount().tolist() == [4, 4, 4, 4, 12, 12]
    assert [epoch for epoch, _ in batches] == sorted(epoch for epoch, _ in batches)


def test_every_scenario_runs_and_its_figures_are_kept(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ORDINARY", "DUPLICATES"):
        small = [
            replace(scenario, samples=max(40, 2 * scenario.heldout), epochs=2, repeats=min(scenario.repeats, 3))
            for scenario in getattr(script, name)
        ]
        monkeypatch.setattr(script, name, tuple(small))
    script.main(["--runs", "2", "--json", str(tmp_path / "rates.json")])
    rows = json.loads((tmp_path / "rates.json").read_text())
    names = [scenario.name for scenario in (*script.ORDINARY, *script.DUPLICATES)]
    assert [row["scenario"]["name"] for row in rows] == [name for name in names for _ in range(2)]
    printed = capsys.readouterr().out
    for row in rows:
        assert row["scenario"]["name"] in printed
        assert set(row["ordinary"]) == {"0.1 %", "1 %", "5 %"}
        assert ("repeated" in row) == bool(row["scenario"]["duplicates"])
