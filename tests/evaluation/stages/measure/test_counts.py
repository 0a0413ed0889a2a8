"""Counting by picture, and comparing detectors by group."""

from __future__ import annotations

import pytest
import torch

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.stages.measure.counts import (
    BeyondLooks,
    summarize_detectors,
    summarize_doses,
    summarize_groups,
)

GROUPS = ["planted"] * 3 + ["unique"] * 2 + ["heldout"] * 2


def distances(*ratios: list[float]) -> Replication:
    """Given ratios; the rest does not matter."""
    ratio = torch.tensor(ratios)
    return Replication(ratio, ratio, ratio, torch.zeros_like(ratio).long(), ratio, 50)


def test_a_prompt_counts_once_however_many_seeds_copy() -> None:
    """Two of three planted prompts, by three of six images."""
    result = distances([0.1, 0.2], [0.9, 0.3], [0.9, 0.8], [1, 1], [0.5, 1], [1, 1], [1, 1])
    summary = summarize_groups(GROUPS, result, threshold=0.5)
    planted = summary["planted"]
    assert list(summary) == ["planted", "unique", "heldout"]
    assert (planted["n"], planted["reproduced"], planted["share"], planted["share_of_images"]) == (3, 2, 2 / 3, 0.5)
    assert planted["interval"][0] < 2 / 3 < planted["interval"][1]
    assert summary["unique"]["reproduced"] == 0  # 0.5 is not below 0.5
    assert planted["best_ratio"]["median"] == pytest.approx(0.3)


def test_prompts_of_a_template_are_counted_together() -> None:
    """Three images under five captions: the first and the last are reproduced, the first by its second caption."""
    ratios = distances([0.9], [0.1], [0.8], [0.7], [0.2], [0.6])
    looks = torch.tensor([1, 1, 1, 1, 1, 3])
    ratios = Replication(ratios.ratio, ratios.ratio, ratios.ratio, ratios.nearest, ratios.ratio, 50, looks)
    groups = ["varied_captions"] * 5 + ["varied_images"]
    summary = summarize_groups(groups, ratios, threshold=0.5, pictures=["a", "a", "b", "b", "c", "d"])
    found = summary["varied_captions"]
    assert (found["n"], found["prompts"], found["reproduced"], found["share"]) == (3, 5, 2, 2 / 3)
    assert found["best_ratio"] == {name: pytest.approx(v) for name, v in (("min", 0.1), ("median", 0.2), ("max", 0.7))}
    assert found["share_of_images"] == 0.4
    assert (found["looks"], summary["varied_images"]["looks"]) == (pytest.approx(5 / 3), 3)
    assert summarize_groups(groups, ratios, threshold=0.5)["varied_captions"]["n"] == 5


def test_doses_are_counted_apart() -> None:
    """Planted at 12 and at 50, unique ones as dose 1; other groups and held-out prompts do not count."""
    groups = ["planted"] * 4 + ["unique"] * 2 + ["canary", "heldout"]
    result = distances([0.1, 0.9], [0.9, 0.9], [0.1, 0.9], [0.9, 0.2], [0.9, 0.9], [0.9, 0.9], [0.1, 0.1], [1.0, 1.0])
    table = summarize_doses(groups, [12, 12, 50, 50, 1, 1, 12, 0], result, threshold=0.5)
    assert [(dose["repeats"], dose["n"], dose["reproduced"], dose["share"]) for dose in table] == [
        (1, 2, 0, 0.0),
        (12, 2, 1, 0.5),
        (50, 2, 2, 1.0),
    ]
    assert all(dose["interval"][0] <= dose["share"] <= dose["interval"][1] for dose in table)
    assert summarize_doses(groups, [12] * 4 + [1, 1, 50, 0], result, threshold=0.5) == []


def test_files_of_a_picture_are_one_dose() -> None:
    """Two captions of a picture of 8 files, of which the second brings it back, and one of 4 files."""
    ratios = distances([0.9], [0.1], [0.9], [0.9])
    groups, names = ["repeated", "repeated", "repeated", "unique"], ["a", "a", "b", "c"]
    table = summarize_doses(groups, [8, 8, 4, 1], ratios, threshold=0.5, pictures=names)
    assert [(dose["repeats"], dose["n"], dose["reproduced"]) for dose in table] == [(1, 1, 0), (4, 1, 0), (8, 1, 1)]


def test_what_lies_beyond_several_looks_is_counted_beside() -> None:
    """Both pictures are below the threshold; the one with many versions is not below the one that allows for them."""
    ratios = distances([0.4], [0.1])
    ratios = Replication(
        ratios.ratio, ratios.ratio, ratios.ratio, ratios.nearest, ratios.ratio, 50, torch.tensor([200, 1])
    )
    beyond = BeyondLooks(torch.tensor([0.3, 0.5]), torch.tensor([0.02, 0.01]))
    found = summarize_groups(["repeated"] * 2, ratios, threshold=0.5, beyond=beyond, population={"repeated": 7})
    assert (found["repeated"]["reproduced"], found["repeated"]["of"]) == (1, 7), "each by its own threshold"
    assert found["repeated"]["beyond_looks"]["reproduced"] == 1
    assert found["repeated"]["beyond_looks"]["chance"] == pytest.approx(0.015)
    one = BeyondLooks(beyond.thresholds[1:], beyond.rates[1:])
    plain = summarize_groups(["unique"], distances([0.4]), threshold=0.5, beyond=one)
    assert "beyond_looks" not in plain["unique"]


class Reversed(GuidanceNorm):
    """A detector whose low scores mean memorized."""

    higher_means_memorized = False


@pytest.mark.parametrize("detector", [GuidanceNorm(), Reversed()])
def test_detectors_are_oriented_and_compared_per_group(detector: GuidanceNorm) -> None:
    """A perfect separation is 1 for either direction; comparisons without one class are left out."""
    scores = torch.tensor([9.0, 8, 7, 3, 2, 1, 0]) * (1 if detector.higher_means_memorized else -1)
    summary = summarize_detectors(
        [detector],
        {detector.name: scores},
        GROUPS,
        reproduced=torch.zeros(7, dtype=torch.bool),
        false_positive_rate=0.05,
        seed=0,
        resamples=20,
    )
    comparisons = summary[detector.name]["comparisons"]
    assert set(comparisons) == {"planted_vs_heldout", "planted_vs_unique"}
    found = comparisons["planted_vs_unique"]
    assert (found["auroc"], found["true_positive_rate"], found["positives"], found["negatives"]) == (1, 1, 3, 2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_one_and_two_are_summarized(count: int) -> None:
    ratio = torch.tensor([[0.5, 0.9], [0.8, 0.7]])[:count]
    index = torch.zeros(count, 2, dtype=torch.long)
    distances = Replication(ratio, ratio, torch.ones(count, 2), index, ratio, 1)
    groups = ["planted", "heldout"][:count]
    found = summarize_groups(groups, distances, threshold=0.6)
    assert [(name, group["n"], group["reproduced"]) for name, group in found.items()] == [
        ("planted", 1, 1),
        ("heldout", 1, 0),
    ][:count]
    assert all(group["interval"][1] - group["interval"][0] > 0.7 for group in found.values())
    assert summarize_doses(groups, [2, 0][:count], distances, threshold=0.6) == []
    detector = GuidanceNorm()
    scored = summarize_detectors(
        [detector],
        {detector.name: torch.arange(count).float()},
        groups,
        reproduced=torch.zeros(count, dtype=torch.bool),
        false_positive_rate=0.05,
        seed=0,
        resamples=5,
        level=0.95,
    )
    assert list(scored[detector.name]["comparisons"]) == (["planted_vs_heldout"] if count == 2 else [])
