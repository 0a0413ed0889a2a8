"""Figures of a mitigation on values whose answer is known."""

from __future__ import annotations

import pytest
import torch

from memtrain.evaluation.measures.pixels import distance_between_prompts, diversity
from memtrain.evaluation.stages.mitigate.changes import Measured, summarize
from memtrain.functional.ranking import mean_with_interval, proportion_interval


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


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_one_and_two_are_summarized(count: int) -> None:
    measured = Measured(torch.full((count, 2), 0.5), torch.ones(count), torch.ones(count, 2))
    found = summarize(
        [True] * count, without=measured, mitigated=measured, moved=torch.zeros(count, 2), threshold=0.6, resamples=5
    )
    assert [(name, group["prompts"]) for name, group in found.items()] == ([("memorized", count)] if count else [])
    for group in found.values():
        assert group["without"]["reproduced"]["k"] == count
        assert (group["without"]["diversity"]["interval"] is None) == (count < 2)
    images = torch.zeros(count, 2, 3, 4, 4, dtype=torch.uint8)
    spread = diversity(images)
    assert spread is not None
    assert spread.shape == (count,)
    assert (distance_between_prompts(images) is None) == (count < 2)
    assert mean_with_interval(torch.ones(count))["mean"] == (1.0 if count else None)
