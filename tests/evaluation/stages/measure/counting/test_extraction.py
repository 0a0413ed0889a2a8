"""Extraction by prompt and without one: closed forms."""

import math
from itertools import combinations

import pytest
import torch

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.counting.extraction import extraction_by_prompt, unconditional_extraction

OWN = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]])
COMPARED = Compared(OWN, OWN, torch.zeros_like(OWN).long(), OWN, torch.full((3,), math.nan))


def test_a_prompt_is_extracted_if_any_of_its_generations_is_a_copy():
    found = extraction_by_prompt(COMPARED, 0.5)
    assert (found["n"], found["extracted"], found["generations"]) == (3, 2, 4)
    assert found["of_generations"]["copies"] == 3
    assert extraction_by_prompt(COMPARED, 0.5, trained=torch.tensor([False, True, False]))["extracted"] == 0


def test_the_share_by_attempts_is_the_mean_over_all_choices_of_generations():
    copied = OWN > 0.5
    for one in extraction_by_prompt(COMPARED, 0.5)["by_attempts"]:
        choices = list(combinations(range(4), one["generations"]))
        expected = sum(float(copied[:, list(choice)].any(dim=1).float().mean()) for choice in choices) / len(choices)
        assert one["share"] == pytest.approx(expected)
    assert [one["generations"] for one in extraction_by_prompt(COMPARED, 0.5)["by_attempts"]] == [1, 2, 4]


def test_attempts_end_at_all_generations_whatever_their_number():
    five = Compared(*(torch.ones(2, 5),) * 2, torch.zeros(2, 5).long(), torch.ones(2, 5), torch.ones(2))
    assert [one["generations"] for one in extraction_by_prompt(five, 0.5)["by_attempts"]] == [1, 2, 4, 5]


def test_pictures_that_come_out_without_a_prompt_are_counted_once_each():
    nearest = torch.tensor([[0.9, 0.9, 0.9, 0.1, 0.9, 0.2, 0.1, 0.1]])
    index = torch.tensor([[0, 0, 1, 2, 3, 0, 0, 0]])
    found = unconditional_extraction(nearest, index, 0.5, names=["a", "b", "c", "b"])
    assert (found["n"], found["prompts"], found["copies"], found["distinct"]) == (8, 1, 4, 2)
    assert found["per_thousand"] == 250
    assert found["most"] == {"name": "a", "copies": 2}
    assert (found["next_is_new"], found["at_least"]) == (0, 2), "each came out twice, so nothing points to others"
    assert found["effective_n"] == 8, "generations for one prompt are independent"


def test_pictures_that_came_out_once_point_to_others():
    found = unconditional_extraction(torch.ones(1, 3), torch.tensor([[0, 1, 2]]), 0.5, names=["a", "b", "c"])
    assert found["next_is_new"] == 1
    assert found["at_least"] == pytest.approx(3 + 2 / 3 * 3 * 2 / 2)


def test_nothing_that_comes_out_is_said_without_dividing_by_it():
    found = unconditional_extraction(torch.zeros(4, 2), torch.zeros(4, 2).long(), 0.5, names=["a"])
    assert (found["share"], found["distinct"], found["most"], found["at_least"]) == (0, 0, None, None)
