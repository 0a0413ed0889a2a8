"""Signals and flags against planted truth: directions, missing values, precision and recall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
import pytest

from memtrain.errors import RecordError
from memtrain.evaluation.stages.measure.training_record import compare_with_truth, flags_and_copies

PLANTED = [True, True, True, False, False, False, False]


def table(**columns: Sequence[object]) -> pa.Table:
    """Three planted and four unique samples."""
    base: dict[str, object] = {
        "key": [f"k{index}" for index in range(7)],
        "caption": ["c"] * 7,
        "visits_per_epoch": [100 if planted else 1 for planted in PLANTED],
        "visits": [50.0] * 7,
    }
    return pa.table({**base, **columns})


def test_declared_and_observed_directions() -> None:
    """Low losses are oriented by declaration, even where that is wrong; an undeclared column by what it shows."""
    low_when_planted = [0.1, 0.2, 0.3, 1.0, 2.0, 3.0, 4.0]
    result = compare_with_truth(
        table(
            denoising_loss=low_when_planted,
            score=low_when_planted,
            **{"attention_entropy.up_3": low_when_planted, "mine.a": low_when_planted},
        ),
        directions={"mine": "high"},
        seed=0,
        resamples=20,
    )
    signals = {signal["column"]: signal for signal in result["signals"]}
    assert set(signals) == {"denoising_loss", "score", "attention_entropy.up_3", "mine.a"}
    assert [signals[name]["auroc"] for name in ("denoising_loss", "attention_entropy.up_3", "score")] == [1, 1, 0]
    assert [signals[name]["declared"] for name in ("denoising_loss", "attention_entropy.up_3", "score", "mine.a")] == [
        "low",
        "unknown",
        "high",
        "high",
    ]
    assert {signal["observed"] for signal in signals.values()} == {"low"}
    assert {signal["auroc_of_higher"] for signal in signals.values()} == {0}
    assert signals["denoising_loss"]["true_positive_rate"] == 1
    assert result["planted"] == 3
    assert result["unique"] == 4


def test_missing_values_are_left_out_and_counted() -> None:
    """Null, NaN and infinity alike; a column without a planted value is no signal."""
    result = compare_with_truth(
        table(
            a=[1.0, None, math.nan, 0.0, 0.0, math.inf, 0.5],
            b=[None, None, None, 0.0, 0.0, 0.0, 0.0],
        ),
        seed=0,
        resamples=20,
    )
    (signal,) = result["signals"]
    assert (signal["column"], signal["auroc"], signal["without_value"]) == ("a", 1, 3)


def test_precision_recall_and_steps_of_flags() -> None:
    """Two of three planted and one of four unique flagged."""
    flags = compare_with_truth(
        table(
            flagged=[True, True, False, True, False, False, None],
            first_flagged_step=pa.array([10, 30, None, 20, None, None, None], pa.int64()),
            flagged_share=[0.5, 0.5, 0.0, 0.1, 0.0, 0.0, 0.0],
            skipped=[0.8, 0.6, 0.1, 0.4, 0.0, 0.0, 0.0],
        ),
        seed=0,
    )
    found = flags["flags"]
    assert (found["planted_flagged"], found["planted_missed"]) == (2, 1)
    assert (found["unique_flagged"], found["unique_not_flagged"]) == (1, 3)
    assert found["precision"]["share"] == found["recall"]["share"] == 2 / 3
    assert found["false_positive_rate"]["share"] == 0.25
    assert found["first_flagged_step"] == {"min": 10, "median": 10, "max": 30}
    assert flags["skipped"] == {"planted": pytest.approx(0.5), "unique": pytest.approx(0.1)}
    assert flags["signals"] == []


def test_files_of_a_picture_are_flagged_together() -> None:
    """Two files of a planted picture, one of them not planted by itself; three files of a repeated one; one alone."""
    pictures = {"k1": "k0", "k3": "k0", "k4": "k4", "k5": "k4"}
    result = compare_with_truth(
        table(
            group=["planted", "planted", "planted", "unique", "unique", "unique", "unique"],
            flagged=[False, True, False, True, False, True, False],
            first_flagged_step=pa.array([None, 40, None, 20, None, 30, None], pa.int64()),
        ),
        pictures=pictures,
        seed=0,
    )
    assert (result["planted"], result["unique"]) == (3, 1), "files of repeated pictures are neither"
    by_picture = result["flags"]["pictures"]
    assert (by_picture["planted_flagged"], by_picture["planted_missed"]) == (1, 1)
    assert (by_picture["unique_flagged"], by_picture["unique_not_flagged"]) == (0, 1)
    assert by_picture["first_flagged_step"] == {"min": 20, "median": 20, "max": 20}
    assert (by_picture["groups"]["repeated"]["k"], by_picture["groups"]["repeated"]["n"]) == (1, 1)
    assert (result["flags"]["groups"]["repeated"]["k"], result["flags"]["groups"]["repeated"]["n"]) == (2, 3)


def test_groups_say_what_is_planted() -> None:
    """Visits do not: canaries and variants are visited often, and are neither positives nor negatives."""
    groups = ["planted", "canary", "varied_captions", "unique", "unique", "canary", "unique"]
    columns = {
        "flagged": [True, True, False, True, False, False, False],
        "score": [5.0, -9.0, -9.0, 4.0, 1.0, -9.0, 0.0],
        "skipped": [0.5, 1.0, 1.0, 0.25, 0.0, 1.0, 0.0],
    }
    result = compare_with_truth(table(group=groups, **columns), seed=0, resamples=20)
    assert (result["planted"], result["unique"]) == (1, 3)
    assert [(signal["column"], signal["auroc"]) for signal in result["signals"]] == [("score", 1.0)]
    flags = result["flags"]
    assert (flags["planted_flagged"], flags["unique_flagged"], flags["unique_not_flagged"]) == (1, 1, 2)
    assert (flags["precision"]["share"], flags["recall"]["share"]) == (0.5, 1.0)
    assert {name: (share["k"], share["n"], share["share"]) for name, share in flags["groups"].items()} == {
        "canary": (1, 2, 0.5),
        "varied_captions": (0, 1, 0.0),
    }
    assert flags["groups"]["canary"]["interval"][0] < 0.5 < flags["groups"]["canary"]["interval"][1]
    assert result["skipped"] == {"planted": 0.5, "unique": pytest.approx(1 / 12)}


def test_visits_say_it_where_groups_do_not() -> None:
    """No column, or one without an entry, as a data module without groups leaves it."""
    columns = {"flagged": [True] * 3 + [False] * 4}
    plain = compare_with_truth(table(**columns), seed=0)
    assert plain["planted"] == 3
    assert plain["flags"]["groups"] == {}
    assert compare_with_truth(table(group=pa.array([None] * 7, pa.string()), **columns), seed=0) == plain


def test_a_run_with_canaries_alone() -> None:
    """Nothing planted, nothing unique to compare: the canaries' share remains."""
    evidence = table(group=["canary"] * 7, flagged=[True] * 7, skipped=[0.0] * 7, score=[1.0] * 7)
    result = compare_with_truth(evidence, seed=0)
    assert (result["planted"], result["unique"], result["signals"]) == (0, 0, [])
    assert result["flags"]["groups"]["canary"]["share"] == 1
    assert result["skipped"] == {"planted": None, "unique": None}


def test_a_run_that_planted_nothing_has_no_truth() -> None:
    """Counts remain, shares of nothing are None."""
    evidence = table(score=[0.0] * 7, flagged=[False] * 7, skipped=[0.0] * 7)
    evidence = evidence.set_column(2, "visits_per_epoch", pa.array([1] * 7))
    result = compare_with_truth(evidence, seed=0)
    assert result["planted"] == 0
    assert result["signals"] == []
    assert result["flags"]["precision"]["share"] is None
    assert result["flags"]["recall"]["share"] is None
    assert result["skipped"] == {"planted": None, "unique": 0.0}


def test_columns_that_were_not_recorded_are_none() -> None:
    """A monitor without flags or mitigation."""
    result = compare_with_truth(table(), seed=0)
    assert result["flags"] is None
    assert result["skipped"] is None


def test_flags_are_compared_with_copies() -> None:
    """Only over sampled training prompts; without flags there is nothing to compare."""
    evidence = table(flagged=[True, True, False, False, False, False, None])
    counts = flags_and_copies(evidence, {"k0": True, "k1": False, "k2": True, "k6": False, "held-out": True})
    assert counts == {"flagged": {"n": 2, "reproduced": 1}, "not_flagged": {"n": 2, "reproduced": 1}}
    assert flags_and_copies(table(), {"k0": True}) is None


def test_another_table_is_refused() -> None:
    """Naming what is missing."""
    with pytest.raises(RecordError, match="visits_per_epoch"):
        compare_with_truth(pa.table({"key": ["a"]}), seed=0)


@pytest.mark.parametrize("planted", [[], [True], [False], [True, True], [False, False], [True, False]])
def test_no_sample_one_and_two_are_compared_with_the_truth(planted: list[bool]) -> None:
    count = len(planted)
    evidence = pa.table(
        {
            "key": pa.array([f"k{index}" for index in range(count)], pa.string()),
            "visits_per_epoch": pa.array([9 if known else 1 for known in planted], pa.int32()),
            "flagged": pa.array(planted, pa.bool_()),
            "first_flagged_step": pa.array([None] * count, pa.int64()),
            "skipped": pa.array([0.5] * count, pa.float64()),
            "denoising_loss": pa.array([0.0 if known else 1.0 for known in planted], pa.float64()),
        }
    )
    found = compare_with_truth(evidence, seed=0, resamples=5)
    assert (found["planted"], found["unique"]) == (sum(planted), count - sum(planted))
    assert len(found["signals"]) == (1 if len(set(planted)) == 2 else 0)
    assert found["skipped"] == {
        "planted": 0.5 if True in planted else None,
        "unique": 0.5 if False in planted else None,
    }
    recall = found["flags"]["recall"]
    assert (recall["share"], recall["interval"][1]) == (1.0 if True in planted else None, 1.0)
    assert found["flags"]["first_flagged_step"] is None
    copies = flags_and_copies(evidence, {"k0": True})
    assert copies is not None
    assert sum(side["n"] for side in copies.values()) == min(count, 1)
