"""Detectors together: better than each where each knows a part, and worth nothing where none knows anything."""

from __future__ import annotations

import pytest
import torch

from memtrain.evaluation.stages.detect.combined import as_feature, combine, reason_against
from memtrain.functional.ranking import auroc

KEYS = [f"prompt {index}" for index in range(200)]
LABELS = torch.arange(200) < 80


def noise(seed: int) -> torch.Tensor:
    return torch.randn(200, generator=torch.Generator().manual_seed(seed))


def test_two_halves_of_the_truth_are_better_together() -> None:
    hidden = noise(0)
    scores = {"first": (hidden + LABELS).exp(), "second": (-hidden + LABELS).exp(), "third": noise(1).exp()}
    together, said = combine(scores, LABELS, KEYS)
    assert auroc(together, LABELS) == 1.0
    assert said["best_single"]["auroc"] < 0.85
    assert sum(said["best_single"]["chosen"].values()) == said["folds"] == 5
    low, high = said["best_single"]["interval"]
    assert 0.1 < low < said["best_single"]["difference"] < high


def test_choosing_the_best_of_many_that_know_nothing_is_not_rewarded() -> None:
    """In the data at hand the best of 40 looks good; out of fold neither it nor all together do."""
    scores = {f"noise {seed}": noise(seed).exp() for seed in range(40)}
    assert max(float(auroc(score, LABELS)) for score in scores.values()) > 0.59
    together, said = combine(scores, LABELS, KEYS)
    assert float(auroc(together, LABELS)) < 0.58
    assert said["best_single"]["auroc"] < 0.58


def test_a_detector_may_point_the_other_way() -> None:
    _, said = combine({"low": -(noise(0) + 3.0 * LABELS), "noise": noise(1)}, LABELS, KEYS)
    assert said["best_single"]["auroc"] > 0.95


def test_logs_of_positive_scores_alone() -> None:
    torch.testing.assert_close(as_feature(torch.tensor([1.0, 10.0])), torch.tensor([1.0, 10.0]).double().log())
    torch.testing.assert_close(as_feature(torch.tensor([0.0, 10.0])), torch.tensor([0.0, 10.0]).double())


@pytest.mark.parametrize(("memorized", "reason"), [(4, "4 different prompts"), (5, None)])
def test_too_few_prompts_of_a_kind(memorized: int, reason: str | None) -> None:
    labels = torch.arange(30) < memorized
    found = reason_against(labels, KEYS[:30])
    assert found is None if reason is None else found is not None and reason in found


def test_equal_prompts_count_once() -> None:
    assert reason_against(torch.arange(30) < 10, ["the same"] * 10 + KEYS[:20]) is not None


@pytest.mark.parametrize("truth", [[], [True], [True, True], [True, False]])
def test_no_prompt_one_and_two_are_too_few_to_combine(truth: list[bool]) -> None:
    reason = reason_against(torch.tensor(truth, dtype=torch.bool), [f"p{row}" for row in range(len(truth))])
    assert reason is not None
    assert "fewer than 5 folds" in reason
    assert as_feature(torch.ones(len(truth))).tolist() == [0.0] * len(truth)
