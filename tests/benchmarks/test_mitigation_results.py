"""The figures of the ablation: what is kept, and what is pooled."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain.functional.ranking import proportion_interval
from tests.benchmarks.ablation import content, kept
from tests.benchmarks.scripts import Modules


def test_what_is_finished_is_not_run_again_and_what_has_changed_is(scripts: Modules, tmp_path: Path) -> None:
    results, path = scripts.mitigation_results, tmp_path / "figures" / "mitigations.json"
    store = results.Store(path)
    store.add("rows", "baseline", 10, figures=kept(1, identity={"a": 1}))
    store.add("rows", "baseline", 2, figures=kept(2, identity={"a": 1}))
    store.set_timing("plain", {"seconds": 0.2})
    again = results.Store(path)
    assert again.content == store.content
    assert list(again.content["rows"]["baseline"]) == ["2", "10"]
    assert again.finished("rows", "baseline", 2, identity={"a": 1})["groups"]["planted"]["reproduced"] == 2
    assert again.finished("rows", "baseline", 2, identity={"a": 2}) is None
    assert again.finished("rows", "baseline", 3, identity={"a": 1}) is None
    assert again.finished("dose", "baseline", 2, identity={"a": 1}) is None
    assert [file.name for file in path.parent.iterdir()] == ["mitigations.json"], "nothing half written is left"


def test_seeds_are_pooled_and_compared_with_the_baseline_of_the_same_seed(scripts: Modules) -> None:
    lines = {line["row"].name: line for line in scripts.mitigation_results.summarize(content(scripts))}
    assert list(lines) == ["baseline", "recommended", "loss_skipping"]
    planted = lines["recommended"]["groups"]["planted"]
    assert (planted["k"], planted["n"]) == (1, 20)
    assert tuple(planted["interval"]) == proportion_interval(1, 20)
    assert lines["recommended"]["loss_change"] == pytest.approx({"mean": 0.0, "min": -0.1, "max": 0.1})
    assert lines["recommended"]["kid_without_copies_change"] == pytest.approx({"mean": 0.06, "min": 0.05, "max": 0.07})
    assert lines["recommended"]["flags"]["unique"]["n"] == 2000
    assert lines["recommended"]["groups"]["varied_captions"] is None
    assert lines["loss_skipping"]["loss_change"] is None, "no baseline of seed 4"


def test_runs_of_another_configuration_are_left_out(scripts: Modules) -> None:
    found = content(scripts)
    found["rows"]["baseline"]["1"]["identity"] = {"config": "an earlier one"}
    found["dose"]["baseline"]["1"]["identity"] = {"config": "an earlier one"}
    lines = {line["row"].name: line for line in scripts.mitigation_results.summarize(found)}
    assert lines["baseline"]["seeds"] == [0] and lines["recommended"]["seeds"] == [0, 1]
    assert lines["recommended"]["loss_change"] == pytest.approx({"mean": -0.1, "min": -0.1, "max": -0.1})
    assert scripts.mitigation_results.pooled_doses(found)["baseline"][1]["n"] == 60
