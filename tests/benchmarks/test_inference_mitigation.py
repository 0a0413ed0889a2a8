"""The benchmark of mitigations while sampling: what it pools, and what it does not measure again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import inference_mitigation

    return inference_mitigation


def kept(conditions: list[str], *, copied: bool) -> dict[str, Any]:
    """A run of one planted and two held-out prompts; the mitigation stops the copy and takes 1.5 times as long."""
    plain = {
        "ratio": [[0.2 if copied else 1.2, 1.5], [1.1, 1.2], [1.3, 1.4]],
        "diversity": [0.1, 0.3, 0.5],
        "fidelity": [[1, 1], [1, 0], [1, 1]],
        "moved": [[0.0, 0.0]] * 3,
        "seconds": [2.0, 4.0],
    }
    other = {
        "ratio": [[1.2, 1.5], [1.1, 1.2], [1.3, 1.4]],
        "diversity": [0.2, 0.3, 0.5],
        "fidelity": [[1, 1], [0, 0], [1, 1]],
        "moved": [[0.2, 0.4]] * 3,
        "seconds": [3.0, 6.0],
    }
    return {
        "memorized": [True, False, False],
        "threshold": 0.5,
        "false_positive_rate": 1 / 3,
        "conditions": {name: other if index else plain for index, name in enumerate(conditions)},
    }


def test_prompts_of_all_runs_are_pooled_and_compared_in_pairs(benchmark: Any) -> None:
    names = [benchmark.PLAIN, *benchmark.SETTINGS]
    runs = [kept(names, copied=True), kept(names, copied=False)]
    plain, mitigated = (benchmark.pooled(runs, name) for name in names[:2])
    assert plain["groups"]["memorized"]["with"]["reproduced"]["k"] == 1
    assert mitigated["groups"]["memorized"]["with"]["reproduced"]["k"] == 0
    assert mitigated["groups"]["memorized"]["change"]["reproduced"] == {"stopped": 1, "started": 0}
    assert mitigated["groups"]["memorized"]["change"]["diversity"]["mean"] == pytest.approx(0.1)
    assert mitigated["groups"]["other"]["prompts"] == 4
    assert mitigated["groups"]["other"]["change"]["fidelity"]["mean"] == pytest.approx(-0.25)
    assert mitigated["groups"]["other"]["distance_to_unmitigated"]["mean"] == pytest.approx(0.3)
    assert benchmark.exponential(mitigated["time"]["mean"]) == pytest.approx(1.5)


def test_what_is_in_the_file_is_shown_and_not_measured(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "figures.json"
    store.write_text(json.dumps({"a": kept([benchmark.PLAIN, *benchmark.SETTINGS], copied=True)}), encoding="utf-8")
    measured = []
    monkeypatch.setattr(benchmark, "measure", lambda run, **options: measured.append(run.name))
    monkeypatch.setattr(sys, "argv", ["inference_mitigation.py"])
    monkeypatch.setattr(benchmark, "console", benchmark.Console(file=sys.stdout, width=300))
    benchmark.main(["somewhere/a"], json=str(store))
    assert measured == []
    text = capsys.readouterr().out
    assert "1 of 1 (21% to 100%)" in text and all(name in text for name in benchmark.SETTINGS)
