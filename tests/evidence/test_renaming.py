"""What was known of a picture goes over to the one that it turns out to be."""

from __future__ import annotations

import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.renaming import pool_rows, rename_picture
from memtrain.evidence.running_means import Evidence
from memtrain.families.online import OnlineFamilies


def filled(visits: list[tuple[str, float]]) -> Evidence:
    evidence = Evidence(2, 100)
    for key, z in visits:
        values = torch.tensor([[z, 2 * z]], dtype=torch.float64)
        evidence.add(evidence.rows([key]), values, values)
    return evidence


def test_pooled_visits_are_as_if_they_had_been_one_pictures() -> None:
    """Within the window a mean does not depend on the order of visits."""
    evidence = filled([("a", 1.0), ("b", 2.0), ("a", 4.0), ("c", 0.5), ("b", -1.0), ("b", 3.0)])
    pool_rows(evidence, "b", "a")
    expected = filled([("a", 1.0), ("a", 2.0), ("a", 4.0), ("c", 0.5), ("a", -1.0), ("a", 3.0)])
    assert evidence.row == expected.row
    for name in ("visits", "mean", "dilution", "total"):
        torch.testing.assert_close(getattr(evidence, name), getattr(expected, name))


def test_a_picture_that_was_not_visited_takes_everything_over() -> None:
    evidence, expected = filled([("b", 2.0), ("b", 1.0)]), filled([("a", 2.0), ("a", 1.0)])
    pool_rows(evidence, "b", "a")
    pool_rows(evidence, "unknown", "a")
    assert evidence.row == {"a": 0}
    torch.testing.assert_close(evidence.mean, expected.mean)
    torch.testing.assert_close(evidence.dilution, expected.dilution)


def test_flags_stay() -> None:
    index = OnlineFamilies()
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="low", buckets=1, heldout=False).group_by(index)
    values = torch.tensor([[1.0], [-1.0]])
    calibration.add(["a", "b"], [0, 0], values, 3)
    calibration.levels.flag("picture", "b", 3)
    calibration.bulk.peak[1] = 2.5
    rename_picture(calibration, "b", "a")
    assert calibration.levels.crossed["picture"] == {"a": 3}
    assert calibration.levels.flagged_pictures == {"a"}
    assert calibration.first_flagged == {"b": 3}
    assert calibration.ever_flagged(["a", "b"]).tolist() == [True, True]
    assert calibration.bulk.peak.tolist() == [2.5]
    assert calibration.samples.row == {"a": 0}
