"""The simulation suite: stated rates hold, kept runs are gone on from, and runs quote the figures that were found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memtrain.evidence import measured_rates
from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT


def test_runs_are_kept_and_not_repeated_and_a_broken_rate_is_told(
    scripts: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, asked = tmp_path / "rates.json", []

    def twice(seed: int) -> dict[str, float]:
        asked.append(seed)
        return {"0.01": 0.02}

    cell = scripts.rates.Cell("monitor", "made", 8, 4, twice, {"0.01": 0.01})
    monkeypatch.setattr(scripts.rates, "cells", lambda: iter([cell]))
    assert scripts.rates.main(["--json", str(kept), "--runs", "0.5"]) == 1, "twice the promised rate"
    assert "BROKEN" in capsys.readouterr().out
    assert scripts.rates.main(["--json", str(kept)]) == 1
    assert asked == [0, 1, 2, 3], "the first two runs are in the file"
    (row,) = json.loads(kept.read_text())["rows"]
    assert (row["runs"], row["mean"], row["worst"], row["holds"]) == (4, 0.02, 0.02, False)


def test_several_rates_at_once_flag_as_one_rate_alone(scripts: Modules) -> None:
    kind = scripts.rate_scenarios.Kind()
    together = scripts.rate_scenarios.monitor(kind, 12, 3)
    alone = [scripts.rate_scenarios.monitor(kind, 12, 3, rates=(rate,)) for rate in (0.001, 0.01, 0.05)]
    assert together == alone[0] | alone[1] | alone[2]


def test_what_runs_say_was_measured_is_what_the_suite_found(scripts: Modules) -> None:
    rows = json.loads((ROOT / "benchmarks" / "rates.json").read_text())["rows"]
    assert scripts.rates.measured_table(rows) == measured_rates.TABLE
    kinds = {at == 0: len({row["kind"] for row in rows if row["count"] == at}) for at in (0, 8)}
    assert {True: kinds[False], False: kinds[True]} == measured_rates.KINDS


def test_every_promised_rate_holds_in_the_kept_figures() -> None:
    rows = json.loads((ROOT / "benchmarks" / "rates.json").read_text())["rows"]
    assert [row for row in rows if row["holds"] is False] == []
    assert {row["group"] for row in rows} == {"monitor", "bulk", "levels", "prompts", "copies", "exposure"}


def test_prompts_copies_and_secrets_keep_their_rates(scripts: Modules) -> None:
    for cell in scripts.rates.cells():
        if cell.group in ("prompts", "exposure") and cell.kind.startswith("heavy"):
            found = scripts.rates.rows(cell, [cell.run(seed) for seed in range(25)])
            assert [row["name"] for row in found if not row["holds"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heavy tails (t, 3 degrees)", "correlated in pairs", "seven unsigned columns"])
def test_the_monitor_keeps_its_rates_where_the_normal_distribution_did_not(scripts: Modules, kind: str) -> None:
    for cell in scripts.rates.cells():
        if cell.group == "monitor" and cell.kind == kind and cell.count in (8, 30):
            found = scripts.rates.rows(cell, [cell.run(1000 + seed) for seed in range(12)])
            assert [row for row in found if not row["holds"]] == []
