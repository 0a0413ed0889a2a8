"""Figures of a mitigation on values whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memtrain.evaluation.stages.mitigate.changes import (
    Measured,
    distance_between_prompts,
    diversity,
    mean_with_interval,
    pixel_distance,
    summarize,
)
from memtrain.functional.ranking import proportion_interval


def flat(*values: int) -> Tensor:
    """An image of one grey for each value."""
    return torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in values])


def test_distances() -> None:
    torch.testing.assert_close(pixel_distance(flat(0, 51), flat(255, 0)), torch.tensor([1.0, 0.2]))
    spread = diversity(torch.stack([flat(0, 51, 255), flat(7, 7, 7)]))
    assert spread is not None
    torch.testing.assert_close(spread, torch.tensor([(0.2 + 1 + 0.8) / 3, 0.0]))
    assert diversity(flat(0, 1)[:, None]) is None
    assert distance_between_prompts(torch.stack([flat(0, 0), flat(51, 255)])) == pytest.approx(0.6)
    assert distance_between_prompts(flat(0)[None]) is None


def test_the_interval_of_a_mean() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = mean_with_interval(values, seed=0)
    assert found["mean"] == pytest.approx(float(values.double().mean()))
    half = 1.96 * float(values.std()) / 200**0.5
    low, high = found["interval"]
    assert found["mean"] - low == pytest.approx(half, rel=0.15) and high - found["mean"] == pytest.approx(
        half, rel=0.15
    )
    assert mean_with_interval(torch.ones(1)) == {"mean": 1.0, "interval": None}
    assert mean_with_interval(torch.ones(0)) == {"mean": None, "interval": None}


def test_groups_conditions_and_paired_change() -> None:
    known = [True, True, True, False, False, None]
    before = torch.tensor([[0.2, 0.9], [0.9, 0.3], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.1, 0.1]])
    after = torch.tensor([[0.9, 0.9], [0.3, 0.3], [0.4, 0.9], [0.9, 0.9], [0.2, 0.9], [0.1, 0.1]])
    spread = torch.arange(6.0)
    faithful = torch.tensor([[1.0, 0.0]] * 6)
    found = summarize(
        known,
        without=Measured(before, spread, faithful),
        mitigated=Measured(after, spread + 0.5, 1 - faithful),
        moved=torch.arange(12.0).view(6, 2),
        threshold=0.5,
    )
    assert list(found) == ["memorized", "other", "unknown"]
    memorized = found["memorized"]
    assert memorized["prompts"] == 3
    assert memorized["without"]["reproduced"] == {
        "k": 2,
        "n": 3,
        "share": 2 / 3,
        "interval": list(proportion_interval(2, 3)),
    }
    assert memorized["with"]["reproduced"]["k"] == 2
    assert memorized["change"]["reproduced"] == {"stopped": 1, "started": 1}
    assert memorized["without"]["reproduced_images"]["mean"] == pytest.approx(1 / 3)
    assert memorized["with"]["reproduced_images"]["mean"] == pytest.approx(0.5)
    assert memorized["without"]["diversity"]["mean"] == 1.0 and memorized["change"]["diversity"]["mean"] == 0.5
    assert memorized["change"]["diversity"]["interval"] == [0.5, 0.5]
    assert memorized["change"]["fidelity"]["mean"] == 0
    assert memorized["distance_to_unmitigated"]["mean"] == 2.5
    assert found["other"]["change"]["reproduced"] == {"stopped": 0, "started": 1}
    assert found["unknown"]["with"]["reproduced"]["k"] == 1


def test_what_was_not_measured_is_none() -> None:
    nothing = Measured(None, None, None)
    found = summarize([None], without=nothing, mitigated=nothing, moved=torch.ones(1, 1), threshold=None)["unknown"]
    assert set(found["without"].values()) == {None} and set(found["change"].values()) == {None}
    assert found["distance_to_unmitigated"] == {"mean": 1.0, "interval": None}
