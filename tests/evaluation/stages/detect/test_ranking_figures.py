"""Figures of one score: what is said, and what is said not to be known."""

from __future__ import annotations

import pytest
import torch

from memtrain.evaluation.stages.detect.ranking_figures import ranking_figures
from memtrain.functional.ranking import auroc

KEYS = [f"prompt {index}" for index in range(240)]
TRUTH = torch.arange(240) % 2 == 0


def draw(shift: float) -> torch.Tensor:
    return torch.randn(240, generator=torch.Generator().manual_seed(0)).double() + shift * TRUTH


def test_both_conventions_at_both_rates_with_intervals() -> None:
    figures = ranking_figures(draw(2.0), TRUTH, resamples=100)
    assert figures["auroc"] == float(auroc(draw(2.0), TRUTH))
    assert [rate["false_positive_rate"] for rate in figures["true_positive_rates"]] == [0.01, 0.03]
    for rate in figures["true_positive_rates"]:
        for convention in ("nearest", "strict"):
            low, high = rate[f"{convention}_interval"]
            assert 0 <= low <= rate[convention] <= high <= 1
    assert figures["notes"] == []
    assert "same_length" not in figures
    assert "calibration" not in figures


def test_a_perfect_order_and_few_negatives_are_remarked_on() -> None:
    figures = ranking_figures(torch.arange(40).double(), torch.arange(40) >= 20, resamples=50)
    assert figures["interval"] == [1.0, 1.0]
    assert "does not mean certainty" in figures["notes"][0]
    assert [note[:8] for note in figures["notes"][1:]] == ["With 20 "] * 2


def test_length_explains_a_score_that_is_the_length() -> None:
    lengths = torch.randint(4, 8, (240,), generator=torch.Generator().manual_seed(1)) + TRUTH.long()
    figures = ranking_figures(lengths.double(), TRUTH, lengths=lengths, resamples=50)
    assert figures["auroc"] > 0.6
    assert figures["same_length"]["auroc"] == 0.5
    assert figures["same_length"]["lengths"] == 3
    assert figures["same_length"]["memorized"] + figures["same_length"]["others"] < 240


def test_without_a_common_length_there_is_a_reason() -> None:
    figures = ranking_figures(draw(1.0), TRUTH, lengths=5 + TRUTH.long(), resamples=50)
    assert figures["same_length"] == {
        "auroc": None,
        "reason": "no memorized prompt has the same number of tokens as another prompt",
    }


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_probabilities_are_those_observed(shift: float) -> None:
    """Normal scores with a common variance are what a logistic regression assumes."""
    found = ranking_figures(draw(shift), TRUTH, keys=KEYS, resamples=50)["calibration"]
    assert sum(entry["prompts"] for entry in found["bins"]) == 240
    for entry in found["bins"]:
        assert entry["from"] <= entry["predicted"] <= entry["to"]
        assert entry["interval"][0] - 0.1 <= entry["predicted"] <= entry["interval"][1] + 0.1
    assert found["brier"] == pytest.approx(0.25 if shift == 0 else 0.12, abs=0.02)


def test_too_few_prompts_have_no_calibration() -> None:
    found = ranking_figures(torch.rand(6), torch.arange(6) < 3, keys=KEYS[:6], resamples=50)["calibration"]
    assert found["bins"] is None
    assert "fewer than 5 folds" in found["reason"]


@pytest.mark.parametrize("truth", [[], [True], [False], [True, True], [False, False]])
def test_prompts_of_one_kind_have_a_reason_in_place_of_figures(truth: list[bool]) -> None:
    count = len(truth)
    found = ranking_figures(
        torch.arange(count).float(), torch.tensor(truth, dtype=torch.bool), lengths=torch.ones(count), resamples=5
    )
    assert (found["auroc"], found["interval"]) == (None, None)
    assert f"{sum(truth)} of {count} prompts are memorized" in found["reason"]


def test_two_prompts_of_two_kinds_are_ordered_and_no_certainty_is_claimed() -> None:
    found = ranking_figures(
        torch.tensor([1.0, 0.0]), torch.tensor([True, False]), lengths=torch.ones(2), keys=["a", "b"], resamples=5
    )
    assert (found["auroc"], found["same_length"]["pairs"], found["calibration"]["bins"]) == (1.0, 1, None)
    assert "does not mean certainty" in found["notes"][0]
