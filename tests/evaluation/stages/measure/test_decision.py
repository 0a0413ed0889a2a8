"""The verdict of several measures together: what proves, what clears, and what neither does."""

from __future__ import annotations

from typing import Any

import pytest

from memtrain.evaluation.stages.measure.chance import by_chance
from memtrain.evaluation.stages.measure.decision import decided
from memtrain.evaluation.stages.measure.sentences import cannot_say, rests_on
from memtrain.evaluation.stages.measure.verdict import verdict
from memtrain.functional.ranking import proportion_interval

HELD = 60


def group(n: int, k: int, *, factor: int = 1) -> dict[str, Any]:
    """A group of a measure whose threshold lets one of 60 held-out prompts through."""
    return {
        "n": n,
        "reproduced": k,
        "share": k / n,
        "interval": list(proportion_interval(k, n)),
        "expected": factor * n / (HELD + 1),
        "probability": by_chance(k, n, allowed=factor, heldout=HELD),
    }


def measure(
    repeated: int, *, unique: int = 0, plain: float = 1.0, edited: float = 0.9, **changes: Any
) -> dict[str, Any]:
    return {
        "threshold": 0.5,
        "false_positive_rate": 1 / (HELD + 1),
        "n_heldout": HELD,
        "sees": plain >= 0.95,
        "power": {"none": {"share": plain}, "crop": {"share": edited}, "mirror": {"share": 0.1}},
        "groups": {"repeated": group(14, repeated, factor=2), "unique": group(40, unique), "heldout": group(HELD, 0)},
        **changes,
    }


def judged(recommended: str | None, reasons: list[dict[str, str]] | None = None, **measures: Any) -> dict[str, Any]:
    by_ratio = {"cleared": None if reasons else True, "reasons": reasons or [], "reproduced": 0, "asked": 54}
    return decided(by_ratio, {"recommended": recommended, "measures": measures, "left_out": {}})


def test_a_measure_that_sees_and_finds_more_than_chance_proves_it() -> None:
    found = judged("tiles", tiles=measure(0), sscd=measure(6))
    assert (found["cleared"], found["level"]) == (False, "reproduces")
    assert "by sscd, 6 of 14 repeated pictures (by chance about 0.5)" in found["text"]
    assert (found["reproduced"], found["asked"], found["counted_by"]) == (6, 54, "sscd"), (
        "of the measure that proves it"
    )
    assert judged("tiles", tiles=measure(0), sscd=measure(0))["counted_by"] == "tiles"
    blind = judged("tiles", tiles=measure(0), sscd=measure(6, plain=0.9))
    assert blind["cleared"] is True, "what does not see copies proves none"


def test_many_measures_do_not_prove_what_one_does_not() -> None:
    """Three of 14, where two are let through of 60, are chance in 2 % of cases; more with five measures."""
    assert by_chance(3, 14, allowed=2, heldout=HELD) == pytest.approx(0.0199, abs=0.0001)
    assert judged("a", a=measure(3))["cleared"] is False
    several = judged("a", a=measure(0), **{name: measure(3 if name == "b" else 0) for name in "bcde"})
    assert several["cleared"] is None, "and yet it clears nothing"
    assert [one["reason"] for one in several["reasons"]] == ["may_be_copies"]


def test_it_clears_only_if_the_recommended_measure_sees() -> None:
    found = judged("tiles", tiles=measure(0), sscd=measure(0))
    assert (found["cleared"], found["level"]) == (True, "none")
    assert found["text"].startswith("The evaluation found no reproduction: By tiles, 0 of 14 repeated")
    nobody = judged(None, tiles=measure(0, plain=0.4))
    assert [one["reason"] for one in nobody["reasons"]] == ["no_measure"] and nobody["cleared"] is None
    assert "tiles finds 40%" in nobody["text"] and "--copy_detector" in nobody["text"]
    unknown = judged(None, tiles=measure(0, false_positive_rate=None))
    assert unknown["cleared"] is None
    assert judged("tiles", tiles=measure(1))["cleared"] is None, (
        "more of those at risk than chance is expected to bring"
    )
    assert judged("tiles", tiles=measure(0, unique=1))["cleared"] is False or True


def test_what_the_ratio_alone_cannot_see_does_not_count_against_a_measure_that_can() -> None:
    blind = {"reason": "copies_unseen", "found": "of 9 of 9 …", "remedy": "scan"}
    other = {"reason": "few_seeds", "found": "1 image", "remedy": "sample more"}
    assert judged("tiles", [blind], tiles=measure(0))["cleared"] is True
    assert [one["reason"] for one in judged("tiles", [blind, other], tiles=measure(0))["reasons"]] == ["few_seeds"]
    assert judged("ratio", [blind], ratio=measure(0))["cleared"] is None
    found = {"reason": "may_be_copies", "found": "2 of 14 repeated pictures came back", "remedy": "look"}
    assert judged("tiles", [found], tiles=measure(0))["cleared"] is None, "what the ratio did see counts"


def test_light_copies_that_the_ratio_called_chance_are_not_cleared() -> None:
    """Two of 14 pictures of 144 files each came back; by the number of files, chance would explain all 14."""
    interval = list(proportion_interval(2, 14))
    groups = {
        "repeated": {
            "n": 14,
            "reproduced": 2,
            "interval": interval,
            "best_ratio": {"min": 0.62},
            "looks": 144.0,
            "beyond_looks": {"reproduced": 2, "interval": interval, "chance": 0.0422},
        },
        "heldout": {"n": 60, "reproduced": 0, "interval": [0, 0.06], "best_ratio": {"min": 0.8}, "looks": 1.0},
    }
    found = verdict(groups, false_positive_rate=1 / 61, threshold=0.758, heldout=60)
    assert found["cleared"] is None and "may_be_copies" in [one["reason"] for one in found["reasons"]]
    assert "about 0.6 of 14 repeated" in found["text"]


def test_the_sentences_say_what_it_rests_on_and_what_not() -> None:
    results = {
        "sampling": {"seeds": [0, 1, 2, 3], "steps": 20},
        "replication": {
            "groups": {"repeated": {"n": 14, "of": 14}, "unique": {"n": 40, "of": 900}, "heldout": {"n": 60}},
            "false_positive_rate": 1 / 61,
            "n_heldout": 60,
            "calibrated_by": "made_caption",
        },
        "copying": {"recommended": "tiles", "measures": {"sscd": measure(0, plain=0.5), "tiles": measure(1)}},
    }
    said = " ".join(rests_on(results))
    assert "The evaluation sampled 14 repeated and 40 (of 900) unique pictures" in said
    assert "60 captions made from the data's words, at a false-positive rate of 1.6%" in said
    assert "By tiles (recommended), 1 of 54 pictures come back" in said
    assert "It finds 100% of plain copies of these pictures and 50% of edited copies" in said
    assert "sscd" not in said
    not_said = " ".join(cannot_say(results))
    assert "did not sample the captions of 860 unique pictures" in not_said
    assert "No pictures were held out" in not_said
    assert "mirror (10%)" in not_said and "does not use sscd" in not_said
