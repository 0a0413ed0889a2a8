"""The verdict: false, true, or null with its reasons, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from memtrain.evaluation.stages.measure.stage import Measure
from memtrain.evaluation.stages.measure.verdict import Reason, verdict
from memtrain.functional.ranking import proportion_interval


def group(n: int, k: int, *, lowest: float | None = None, looks: float = 1.0, of: int | None = None) -> dict[str, Any]:
    """A group as `summarize_groups` gives it, with a threshold of 0.7 in mind."""
    lowest = (0.3 if k else 0.9) if lowest is None else lowest
    return {
        "n": n,
        "reproduced": k,
        "interval": list(proportion_interval(k, n)),
        "best_ratio": {"min": lowest},
        "looks": looks,
        **({} if of is None else {"of": of}),
    }


def judged(groups: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"false_positive_rate": 0.05, "threshold": 0.7, **changes}
    return verdict({**groups, "heldout": group(24, 0)}, **options)


def reasons(found: dict[str, Any]) -> list[str]:
    return [one["reason"] for one in found["reasons"]]


@pytest.mark.parametrize(
    ("planted", "unique", "cleared", "level", "words"),
    [
        (group(12, 12), group(24, 0), False, "reproduces", "12 of 12 planted and 0 of 24 unique"),
        (
            group(12, 0),
            group(24, 1, lowest=0.65),
            True,
            "inconclusive",
            "about 0.6 of 12 planted and about 1.2 of 24 unique are expected by chance",
        ),
        (group(12, 0), group(24, 0), True, "none", "below 24% of planted and below 14% of unique"),
    ],
)
def test_verdict(planted: dict[str, Any], unique: dict[str, Any], cleared: bool, level: str, words: str) -> None:
    """Only a share that chance does not explain is called reproduction; finding none says how little is excluded."""
    result = judged({"planted": planted, "unique": unique})
    assert (result["cleared"], result["level"]) == (cleared, level)
    assert (result["reproduced"], result["asked"]) == (planted["reproduced"] + unique["reproduced"], 36)
    assert words in result["text"]
    assert not result["reasons"]


def test_a_copy_that_chance_may_have_made_keeps_from_clearing() -> None:
    """One of 12 planted ones, or a unique one at a ratio that is far below the threshold."""
    planted = judged({"planted": group(12, 1, lowest=0.65), "unique": group(24, 0)})
    assert (planted["cleared"], planted["level"], reasons(planted)) == (None, "unjudged", ["may_be_copies"])
    unique = judged({"planted": group(12, 0), "unique": group(24, 1, lowest=0.3)})
    assert (unique["cleared"], reasons(unique)) == (None, ["may_be_copies"])
    # Of 60 repeated pictures, chance is expected to bring back 3.
    assert judged({"repeated": group(60, 2, lowest=0.65)})["cleared"] is True


def test_templates_have_the_chances_they_have() -> None:
    """7 of 12 with one look each are no chance at 5 %; with ten looks each they may be."""
    groups = {"planted": group(12, 0), "varied_images": group(12, 7), "canary": group(6, 1)}
    result = judged(groups)
    assert result["cleared"] is False
    assert "0 of 12 planted, 7 of 12 varied images and 1 of 6 canary pictures come back" in result["text"]
    groups["varied_images"]["looks"] = 10.0
    result = judged(groups)
    assert result["cleared"] is None
    assert "about 6.0 of 12 varied images" in result["text"]
    groups["varied_images"]["beyond_looks"] = {"reproduced": 7, "interval": [0.3, 0.8], "chance": 0.1}
    assert judged(groups)["cleared"] is False, "seven are nearer than many looks explain"


@pytest.mark.parametrize(
    ("groups", "changes", "reason"),
    [
        ({"planted": group(12, 0)}, {"population": {"planted": 12, "unique": 500}}, "few_pictures"),
        ({}, {}, "few_pictures"),
        ({"unique": group(24, 0)}, {"heldout": 15}, "few_heldout"),
        ({"unique": group(24, 24)}, {"heldout": 0, "false_positive_rate": None}, "no_threshold"),
        ({"unique": group(60, 0)}, {"population": {"unique": 60, "repeated": 9}}, "not_asked"),
        ({"unique": group(60, 0), "repeated": group(5, 0)}, {"population": {"repeated": 90}}, "not_asked"),
        ({"unique": group(60, 0)}, {"population": {"flagged": 1}}, "not_asked"),
        ({"unique": group(60, 0)}, {"reasons": [Reason("families_unknown", "nobody has looked", "look")]}, "families"),
    ],
)
def test_what_cannot_be_judged_is_not_cleared(
    groups: dict[str, dict[str, Any]], changes: dict[str, Any], reason: str
) -> None:
    found = judged(groups, **changes)
    assert (found["cleared"], found["level"]) == (None, "unjudged")
    assert any(name.startswith(reason) for name in reasons(found))
    assert "cannot be judged on this evidence" in found["text"] and found["reasons"][0]["remedy"] in found["text"]


def test_a_small_set_that_was_asked_for_whole_is_cleared() -> None:
    assert judged({"unique": group(12, 0)}, population={"unique": 12})["cleared"] is True


def test_a_sample_of_the_repeated_pictures_gives_a_bound() -> None:
    found = judged({"repeated": group(150, 0, of=1213)}, population={"repeated": 1213})
    assert found["cleared"] is True
    assert "0 of 150 repeated (out of 1213)" in found["text"] and "below 2% of repeated" in found["text"]
    assert found["share_below"] == pytest.approx(proportion_interval(0, 150)[1])


def test_few_held_out_prompts_prove_little() -> None:
    """Two of two at a rate of one third are chance in one case of nine; twelve of twelve are none."""
    options: dict[str, Any] = {"heldout": 2, "false_positive_rate": 1 / 3}
    assert judged({"unique": group(2, 2)}, **options)["cleared"] is None
    assert judged({"unique": group(12, 12)}, **options)["cleared"] is False


def test_reasons_do_not_excuse_what_is_reproduced() -> None:
    found = judged({"planted": group(12, 12)}, reasons=[Reason("families_unknown", "nobody has looked", "look")])
    assert found["cleared"] is False
    assert "families_unknown" in reasons(found)


@pytest.mark.parametrize(
    ("fail_on", "statuses"),
    [("never", (0, 0, 0)), ("reproduced", (0, 3, 0)), ("unjudged", (0, 3, 4))],
)
def test_the_command_ends_as_asked(fail_on: Any, statuses: tuple[int, int, int]) -> None:
    stage = Measure(fail_on=fail_on)
    found = [stage.exit_status({"verdict": {"cleared": cleared}}) for cleared in (True, False, None)]
    assert tuple(found) == statuses
