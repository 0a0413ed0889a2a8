"""Counts by patient or artist: a picture by any of its prompts, a group by any of its pictures."""

from __future__ import annotations

import torch

from memtrain.evaluation.stages.measure.by_group import counted_by
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.functional.ranking import proportion_interval


def test_pictures_and_groups_are_counted() -> None:
    keys = ["a1", "a1 again", "a2", "b1", "b2", "c1", "held", "nobody"]
    groups = ["repeated", "repeated", "unique", "unique", "unique", "unique", "heldout", "unique"]
    prompts = [Prompt(key, "x", group) for key, group in zip(keys, groups, strict=True)]
    values = {"a1": "ann", "a1 again": "ann", "a2": "ann", "b1": "bob", "b2": "bob", "c1": "cy", "held": "dan"}
    pictures = ["a1", "a1", "a2", "b1", "b2", "c1", "held", "nobody"]
    reproduced = torch.tensor([False, True, False, False, False, True, True, True])
    by_value, people = counted_by(values, prompts, pictures, reproduced=reproduced)
    assert list(by_value) == ["cy", "ann", "bob"], "the highest share first; held-out pictures do not count"
    assert {name: (one["n"], one["reproduced"]) for name, one in by_value.items()} == {
        "cy": (1, 1),
        "ann": (2, 1),
        "bob": (2, 0),
    }
    assert by_value["ann"]["interval"] == list(proportion_interval(1, 2))
    assert (people["n"], people["reproduced"], people["interval"]) == (3, 2, list(proportion_interval(2, 3)))
