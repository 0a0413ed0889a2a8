"""Which neurons are tried in which order, and which are left: closed cases with made-up scores."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from memtrain.localization.refinement import Refinement, largest_bump
from memtrain.localization.selection import Lists, Mask, mask_of


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


def refined(lists: Lists, score: Callable[[Mask], float], *, binary: bool, margin: float = 0.0) -> Mask:
    """What is left."""
    search = Refinement.begin(lists, binary=binary, margin=margin)
    while not search.done:
        search = search.after(score(mask_of(search.hypothesis())) + search.margin < 0.5)
    return mask_of(search.lists)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("bump", [0.0, 0.01])
def test_a_split_leaves_what_greedy_leaves_where_bumps_are_smaller_than_its_margin(seed: int, bump: float) -> None:
    """Scores that grow by a weight of each neuron that is on, and a bump that depends on the whole set."""
    draw = random.Random(seed)
    lists = tuple(tuple(draw.choices(range(60), k=50)) for _ in range(3))
    weights = {pair: draw.random() ** 8 for pair in mask_of(lists)}

    def score(mask: Mask) -> float:
        on = sum(weight for pair, weight in weights.items() if pair not in mask)
        return 0.2 * on + bump * random.Random(hash(mask)).random()

    expected = refined(lists, score, binary=False)
    found = refined(lists, score, binary=True, margin=bump)
    assert found == expected and 0 < len(expected) < 100


def test_without_its_margin_a_split_is_misled_by_a_bump() -> None:
    """Both neurons on are below the threshold, one alone is not: greedy keeps the first and tries the second."""
    scores = {frozenset({(0, 1), (0, 2), (0, 3)}): 0.1, frozenset({(0, 2), (0, 3)}): 0.6, frozenset({(0, 3)}): 0.4}
    lists = ((1, 2, 3, 9),)

    def score(mask: Mask) -> float:
        return scores.get(mask - {(0, 9)}, 0.1) if (0, 9) in mask else 0.9

    assert refined(lists, score, binary=False) != refined(lists, score, binary=True)
    assert refined(lists, score, binary=False) == refined(lists, score, binary=True, margin=0.3)
    seen = {mask: {0: value, 1: 0.0} for mask, value in scores.items()}
    assert largest_bump(seen) == pytest.approx(0.2)
    assert largest_bump({mask: {0: 1.0} for mask in scores}) == 0.0
