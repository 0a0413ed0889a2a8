"""A watch over more pictures than the reservoir holds: what it says, and what it takes up again."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from memtrain.evidence import reservoir
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.levels import PICTURE
from memtrain.families.table import Families
from memtrain.functional.statistics import robust_threshold

PICTURES = 300


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer in a reservoir than there are pictures."""
    monkeypatch.setattr(reservoir, "MOST", 100)


def watched(steps: int, *, order: int = 0, **options: Any) -> Calibration:
    """Ten pictures of 300 are learnt by heart; each step visits each fifth."""
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(2, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=3, **options)
    go_on(calibration, range(steps), generator=generator)
    return calibration


def go_on(calibration: Calibration, steps: range, *, generator: torch.Generator) -> None:
    own = 0.3 * torch.randn(PICTURES, 2, generator=torch.Generator().manual_seed(9))
    own[:10] += 5
    for step in steps:
        if calibration.heldout is not None:
            for _ in range(5 if step == 0 else 1):
                held = torch.randn(60, 2, generator=generator)
                calibration.add_heldout([f"held {row}" for row in range(60)], [0] * 60, held)
        rows = torch.arange(step % 5, PICTURES, 5)
        values = own[rows] + torch.randn(60, 2, generator=generator)
        calibration.add([f"k{row}" for row in rows.tolist()], [0] * 60, values, step)


def members(calibration: Calibration) -> set[str]:
    return {calibration.samples.names[row] for row in calibration.samples.sample(3).tolist()}


def test_the_bulk_is_that_of_the_pictures_with_the_lowest_places() -> None:
    calibration = watched(40)
    names = sorted((f"k{row}" for row in range(PICTURES)), key=reservoir.place)[:100]
    assert members(calibration) == set(names)
    peaks = calibration.bulk.peak[[calibration.samples.row[name] for name in names]]
    assert torch.equal(calibration.bulk.peaks().sort().values, peaks.sort().values)
    assert (calibration.bulk.peak > -math.inf).all(), "of all pictures, for p-values"
    threshold = robust_threshold(calibration.bulk.peaks(), 0.01, upper=True)
    assert calibration.threshold >= threshold
    assert set(calibration.first_flagged) >= {f"k{row}" for row in range(10)}
    assert len(calibration.first_flagged) < 10 + 0.1 * PICTURES
    assert calibration.highest_pictures(10) == sorted(
        (f"k{row}" for row in range(10)), key=lambda key: -float(calibration.scores([key]))
    )


@pytest.mark.parametrize("heldout", [True, False])
@pytest.mark.parametrize("steps", [9, 40], ids=["early", "late"])
def test_a_run_is_taken_up_as_it_was_left(steps: int, heldout: bool) -> None:
    whole = watched(steps, heldout=heldout)
    assert whole.bulk.early == (not heldout and steps == 9)
    again = Calibration(2, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=3, heldout=heldout)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for calibration in (whole, again):
        go_on(calibration, range(steps, steps + 10), generator=torch.Generator().manual_seed(1))
    assert again.threshold == whole.threshold < math.inf
    assert again.first_flagged == whole.first_flagged != {}
    assert repr(again.state_dict()) == repr(whole.state_dict())
    assert members(again) == members(whole)


def test_canaries_are_told_from_a_sample_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    canaries = [f"k{row}" for row in range(8)]
    calibration = Calibration(
        4, scored=slice(0, 4), memorized_when="unknown", buckets=1, minimum_visits=3, canaries=canaries
    )
    pattern = torch.tensor([2.0, -2.0, 2.0, -2.0])
    for step in range(20):
        calibration.add_heldout([f"h{row}" for row in range(60)], [0] * 60, torch.randn(60, 4, generator=generator))
        rows = list(range(8)) + list(range(8 + step % 4, PICTURES, 4))
        values = torch.randn(len(rows), 4, generator=generator)
        values[:8] += pattern
        calibration.add([f"k{row}" for row in rows], [0] * len(rows), values, step)
    known, others = calibration.taught.taught_by(calibration.samples, ())
    assert [calibration.samples.names[row] for row in known] == canaries
    assert 60 < len(others) <= 100
    assert calibration.direction is not None
    assert torch.nn.functional.cosine_similarity(calibration.direction, pattern.double(), dim=0) > 0.9


def test_the_highest_pictures_are_found_among_families_as_by_looking_at_each() -> None:
    index = Families({f"k{row}": f"k{row // 3 * 3}" for row in range(150)})
    generator = torch.Generator().manual_seed(3)
    calibration = Calibration(3, scored=slice(0, 3), memorized_when="high", buckets=1, minimum_visits=4)
    calibration.group_by(index, pictures=200)
    for step in range(12):
        calibration.add_heldout([f"h{row}" for row in range(60)], [0] * 60, torch.randn(60, 3, generator=generator))
        rows = torch.randint(PICTURES, (90,), generator=generator).tolist()
        calibration.add([f"k{row}" for row in rows], [0] * 90, torch.randn(90, 3, generator=generator), step)
    names = calibration.samples.names
    scores = dict(zip(names, calibration._scores_of(PICTURE, names).tolist(), strict=True))
    visits = dict(zip(names, calibration.samples.fewest_visits().tolist(), strict=True))
    expected = sorted((name for name in names if visits[name]), key=lambda name: (visits[name] < 4, -scores[name]))
    for count in (1, 7, 150, len(names)):
        assert calibration.highest_pictures(count) == expected[:count]
