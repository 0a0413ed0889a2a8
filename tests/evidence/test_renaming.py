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


def test_what_is_counted_along_follows() -> None:
    """The median of visits, the order of samples and their highest scores are those of a run without the old name."""
    index = OnlineFamilies()
    options = {"scored": slice(0, 1), "memorized_when": "low", "buckets": 1, "minimum_visits": 2}
    calibration = Calibration(1, **options)  # type: ignore[arg-type]
    calibration.group_by(index)
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        calibration.add_heldout([f"h{row}" for row in range(20)], [0] * 20, torch.randn(20, 1, generator=generator))
        calibration.add(list("abcad"), [0] * 5, torch.randn(5, 1, generator=generator), step)
    peaks = dict(zip(calibration.samples.names, calibration.bulk.peak.tolist(), strict=True))
    rename_picture(calibration, "b", "c")
    rename_picture(calibration, "h3", "h7")
    samples = calibration.samples
    assert samples.row == {"a": 0, "d": 1, "c": 2}
    assert samples.names == ["a", "d", "c"]
    assert samples.fewest_visits().tolist() == [10, 5, 10]
    assert (samples.counts.median(), samples.counts.seen, samples.counts.most) == (10, 3, 10)
    assert calibration.bulk.peak.tolist() == [peaks["a"], peaks["d"], max(peaks["b"], peaks["c"])]
    assert "h3" not in calibration.highest and len(calibration.highest) == 19
    calibration.add(["e"], [0], torch.zeros(1, 1), 9)
    assert samples.row["e"] == 3 and samples.fewest_visits([3]).tolist() == [1]
