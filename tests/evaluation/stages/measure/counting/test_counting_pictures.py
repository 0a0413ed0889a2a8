"""Shares of pictures, of groups and of generations: counted by hand."""

import math

import pytest
import torch

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.counting.generations import count_generations, published_threshold
from memtrain.evaluation.stages.measure.counting.pictures import count_by_group, count_groups, count_pictures
from memtrain.evaluation.stages.measure.counting.shares import effective_trials, share_of_generations, wilson
from memtrain.functional.ranking import proportion_interval


def compared(own, nearest=None, index=None):
    own = torch.tensor(own)
    nearest = own if nearest is None else torch.tensor(nearest)
    index = torch.zeros_like(own).long() if index is None else torch.tensor(index)
    return Compared(own, nearest, index, torch.full_like(own, -1.0), torch.full(own.shape[:1], math.nan))


FOUR = compared([[0.9, 0.1], [0.2, 0.1], [0.1, 0.6], [0.5, 0.5]])


def test_a_picture_is_reproduced_if_any_generation_of_any_of_its_prompts_is():
    found = count_pictures(FOUR, 0.5, pictures=["a", "b", "b", None], files={"a": 1, "b": 3})
    assert (found["n"], found["reproduced"], found["names"]) == (2, 2, ["a", "b"])
    assert found["interval"] == list(proportion_interval(2, 2))
    assert [(one["files"], one["n"], one["reproduced"]) for one in found["by_size"]] == [("1", 1, 1), ("2-4", 1, 1)]


def test_what_equals_the_threshold_is_no_copy():
    assert count_pictures(FOUR, 0.6, pictures=["a", "b", "c", "d"])["names"] == ["a"]


def test_groups_count_pictures_and_groups_of_which_any_is_reproduced():
    values = {"a": "ann", "b": "ann", "c": "bob"}
    found = count_by_group(FOUR, 0.55, pictures=["a", "b", "c", "d"], values=values)
    assert {value: (one["n"], one["reproduced"]) for value, one in found.items()} == {"ann": (2, 1), "bob": (1, 1)}
    assert count_groups(found)["share"] == 1.0
    alone = count_by_group(FOUR, 0.7, pictures=["a", "b", "c", "d"], values=values)
    assert list(alone) == ["ann", "bob"], "most reproduced first"
    assert count_groups(alone)["share"] == 0.5


def test_no_picture_gives_no_share_and_no_error():
    found = count_pictures(FOUR, 0.5, pictures=[None] * 4)
    assert (found["n"], found["share"], found["interval"]) == (0, None, [0.0, 1.0])


def test_a_copy_of_a_picture_that_another_prompt_asked_for_is_counted():
    given = compared([[0.1, 0.9]], [[0.8, 0.9]], [[2, 0]])
    found = count_generations(given, 0.5, names=["a", "b", "b"])
    assert (found["copies"], found["of_other_pictures"], found["pictures"]["distinct"]) == (2, 1, 2)
    assert found["pictures"]["n"] == 2
    held_out = count_generations(given, 0.5, names=["a", "b", "b"], among=torch.tensor([False]))
    assert (held_out["n"], held_out["share"]) == (0, None)


def test_the_published_threshold_is_a_quantile_over_training_pictures():
    assert published_threshold(torch.arange(101) / 100) == pytest.approx(0.95)


def test_generations_of_a_prompt_that_are_all_the_same_are_one_trial():
    same = torch.tensor([[True] * 8] * 5 + [[False] * 8] * 15)
    assert effective_trials(same) == pytest.approx(20)
    found = share_of_generations(same)
    assert found["interval"] == pytest.approx(list(proportion_interval(5, 20)))


def test_generations_of_a_prompt_that_differ_as_chance_would_have_it_are_all_trials():
    torch.manual_seed(0)
    independent = torch.rand(500, 8) < 0.3
    assert effective_trials(independent) == pytest.approx(4000, rel=0.15)
    assert wilson(0.25, 40) == pytest.approx(list(proportion_interval(10, 40)))


def test_without_any_copy_prompts_are_the_trials():
    assert share_of_generations(torch.zeros(30, 10).bool())["interval"] == pytest.approx(
        list(proportion_interval(0, 30))
    )


def test_the_interval_covers_the_truth_although_generations_are_clustered():
    torch.manual_seed(1)
    inside = 0
    for _ in range(400):
        share = torch.distributions.Beta(0.4, 1.6).sample((40, 1))  # of each prompt; 0.2 on average
        low, high = share_of_generations(torch.rand(40, 8) < share)["interval"]
        inside += low <= 0.2 <= high
    assert inside >= 0.9 * 400
