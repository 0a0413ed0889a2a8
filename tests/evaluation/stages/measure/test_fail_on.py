"""Conditions on results: read strictly, decided by the figure, and never passed because a figure is missing."""

from __future__ import annotations

from typing import Any

import pytest

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.measure.fail_on import read_fail_on
from memtrain.evaluation.stages.measure.stage import Measure

RESULTS: dict[str, Any] = {
    "verdict": {"cleared": True, "reproduced": 2, "asked": 100, "share_below": 0.07},
    "counts": {"generations": {"n": 400, "copies": 10, "share": 0.025}},
}


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("reproduced > 0.01", 3),
        ("reproduced > 0.02", 0),
        ("reproduced >= 0.02", 3),
        ("reproduced>1%", 3),
        ("reproduced > 3 %", 0),
        ("share_below > .05", 3),
        ("share_below >= 0.5", 0),
        ("pictures >= 2", 3),
        ("pictures > 2", 0),
        ("copies > 0.02", 3),
        ("generations > 10", 0),
    ],
)
def test_a_condition_goes_by_its_figure(condition: str, status: int) -> None:
    assert Measure(fail_on=condition).exit_status(RESULTS) == status


def test_a_figure_that_was_not_measured_is_no_pass() -> None:
    nothing = {"verdict": {**RESULTS["verdict"], "asked": 0, "reproduced": 0}}
    for condition in ("copies > 0.5", "generations >= 1000", "reproduced > 0.5", "pictures > 9"):
        assert read_fail_on(condition).status(nothing) == 4


@pytest.mark.parametrize(
    "text",
    [
        *("sometimes", "> 1", "reproduced > ", "reproduced > x", "reproduced < 0.1", "reproduced > 0.1 or 1"),
        *(
            "__import__('os') > 1",
            "reproduced > 1",
            "copies >= 2",
            "verdict > 0.1",
            "reproduced > 1e-2",
            "pictures > -1",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused_before_anything_is_loaded(text: str) -> None:
    with pytest.raises(ConfigurationError, match="fail_on="):
        Measure(fail_on=text).check()


@pytest.mark.parametrize("reason", ["control_failed", "heldout_differs", "samples_flat", "no_threshold"])
def test_a_figure_below_its_number_is_no_pass_where_copies_pass_unseen(reason: str) -> None:
    blind = {**RESULTS, "verdict": {**RESULTS["verdict"], "reasons": [{"reason": reason}]}}
    assert read_fail_on("reproduced > 0.5").status(blind) == 4
    assert read_fail_on("reproduced > 0.01").status(blind) == 3, "what was found is found"
    harmless = {**RESULTS, "verdict": {**RESULTS["verdict"], "reasons": [{"reason": "few_prompts"}]}}
    assert read_fail_on("reproduced > 0.5").status(harmless) == 0
