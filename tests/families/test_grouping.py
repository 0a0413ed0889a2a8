"""Sets, and families around a representative, by hand."""

from __future__ import annotations

import numpy as np

from memtrain.families.grouping import DisjointSets, around_representatives


def joined(count: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    sets = DisjointSets(count)
    for one, other in pairs:
        sets.join(one, other)
    return sets.names()


def test_sets_are_named_by_their_smallest_member() -> None:
    assert joined(6, [(4, 2), (5, 4), (0, 1)]).tolist() == [0, 0, 2, 3, 2, 2]
    assert joined(0, []).tolist() == []


def test_a_chain_is_cut_and_what_is_left_forms_families_of_its_own() -> None:
    """0-1-2-3-4 in a row, each like its neighbours alone: 1 or 2 holds a family, and what is left is a pair."""
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4)]
    heads, names = around_representatives(
        joined(5, pairs),
        np.array(pairs),
        np.ones(4, np.float32),
        compare=lambda asked: np.zeros(len(asked), np.float32),
        least=0.5,
    )
    assert names.tolist() == [0, 0, 0, 3, 3]
    assert heads.tolist() == [1, 1, 1, 3, 3]


def test_members_that_were_not_neighbours_are_compared() -> None:
    asked_for = []

    def compare(asked: np.ndarray) -> np.ndarray:
        asked_for.extend(map(tuple, asked.tolist()))
        return np.ones(len(asked), np.float32)

    pairs = np.array([(0, 1), (1, 2), (2, 3)])
    heads, names = around_representatives(
        joined(4, pairs.tolist()), pairs, np.ones(3, np.float32), compare=compare, least=0.5
    )
    assert names.tolist() == [0, 0, 0, 0]
    assert asked_for == [(1, 3)]
    assert heads.tolist() == [1] * 4


def test_the_representative_is_like_most_even_if_others_have_more_pairs() -> None:
    """A star of 40 around 39, of which ten also hold together among themselves."""
    pairs = [(at, 39) for at in range(39)] + [(a, b) for a in range(10) for b in range(a + 1, 10)] * 5

    def compare(asked: np.ndarray) -> np.ndarray:
        return ((asked[:, 1] == 39) | (asked < 10).all(axis=1)).astype(np.float32)

    heads, names = around_representatives(
        joined(40, pairs), np.array(pairs), np.ones(len(pairs), np.float32), compare=compare, least=0.5
    )
    assert set(heads.tolist()) == {39}
    assert set(names.tolist()) == {0}
