"""Evidence against the step: of the pictures asked for, thinned, with the threshold of the run."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from memtrain.evaluation.stages.measure.evidence_curves import (
    NAME,
    POINTS,
    read_evidence_curves,
    write_evidence_curves,
)
from memtrain.records import RecordWriter


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Two processes; a picture visited often, one once, one that nobody asks for, and a score that is not known."""
    folder = tmp_path / "records"
    for rank in (0, 1):
        writer = RecordWriter(folder, rank=rank, batches_per_part=40)
        for batch in range(rank, 200, 2):
            once = ["once"] if batch == 7 else ["other"]
            score = float("nan") if batch == 20 else batch / 10
            writer.append(batch, {"key": ["often", *once], "step": [batch, batch], "score": [score, 1.0]})
        writer.flush()
    (folder / "calibration.json").write_text(json.dumps({"threshold": 4.5}))
    return folder


def test_curves_are_those_of_the_pictures_asked_for(records: Path, tmp_path: Path) -> None:
    assert write_evidence_curves(records, tmp_path, keys=["often", "once", "never", "often"]) == tmp_path / NAME
    curves, threshold = read_evidence_curves(tmp_path)
    assert threshold == 4.5
    assert curves["once"] == ([7], [1.0])
    steps, scores = curves["often"]
    assert set(curves) == {"often", "once"} and len(steps) == POINTS
    assert steps[0] == 0 and steps[-1] == 199 and steps == sorted(steps) and 20 not in steps
    assert scores == pytest.approx([step / 10 for step in steps])
    assert max(after - before for before, after in pairwise(steps)) <= 5, "evenly spread"


def test_a_run_without_evidence_has_no_curves(records: Path, tmp_path: Path) -> None:
    """And those of an earlier evaluation are no longer there."""
    write_evidence_curves(records, tmp_path, keys=["once"])
    assert write_evidence_curves(tmp_path / "none", tmp_path, keys=["once"]) is None
    assert read_evidence_curves(tmp_path) == ({}, None)
    assert write_evidence_curves(records, tmp_path, keys=["never"]) is None
    (records / "calibration.json").unlink()
    write_evidence_curves(records, tmp_path, keys=["once"])
    assert read_evidence_curves(tmp_path) == ({"once": ([7], [1.0])}, None)
