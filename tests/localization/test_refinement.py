"""Which neurons are tried in which order, and which are left: closed cases with made-up scores."""

from __future__ import annotations

import random

import pytest

from memtrain.localization.refinement import Refinement
from memtrain.localization.selection import Lists, mask_of


def run(lists: Lists, needed: set[tuple[int, int]], *, binary: bool = False) -> tuple[Lists, list[Lists]]:
    """Refine where a set is below the threshold as long as it holds everything that is needed."""
    search, tried = Refinement.begin(lists, binary=binary), []
    while not search.done:
        trial = search.hypothesis()
        tried.append(trial)
        search = search.after(mask_of(trial) >= needed)
    return search.lists, tried


def test_layers_are_tried_from_the_last_and_then_neurons_of_those_left() -> None:
    left, tried = run(((4, 7), (), (1, 2), (5,)), {(0, 7), (2, 1)})
    assert tried == [
        ((4, 7), (), (1, 2), ()),
        ((4, 7), (), (), ()),
        ((), (), (1, 2), ()),
        ((4, 7), (), (2,), ()),
        ((4, 7), (), (1,), ()),
        ((7,), (), (1,), ()),
        ((), (), (1,), ()),
    ]
    assert left == ((7,), (), (1,), ())


def test_of_a_neuron_that_stands_twice_the_first_copy_goes() -> None:
    left, tried = run(((3, 8, 3),), {(0, 3)})
    assert tried == [((),), ((8, 3),), ((3,),), ((),)]
    assert left == ((3,),)


def test_a_needed_neuron_keeps_its_repetition_where_its_removal_counts_as_no_change() -> None:
    search = Refinement.begin(((3, 3),)).after(False)
    assert search.hypothesis() == ((3,),)
    assert search.after(False).after(False).lists == ((3, 3),)


@pytest.mark.parametrize("seed", range(20))
def test_a_binary_split_finds_what_is_needed_with_fewer_tries(seed: int) -> None:
    draw = random.Random(seed)
    lists = tuple(tuple(draw.sample(range(200), 60)) for _ in range(3))
    needed = {(layer, draw.choice(neurons)) for layer, neurons in enumerate(lists[:2])}
    greedy, one_by_one = run(lists, needed)
    split, halving = run(lists, needed, binary=True)
    assert mask_of(split) == mask_of(greedy) == needed
    assert len(halving) < 40 < 120 < len(one_by_one)
