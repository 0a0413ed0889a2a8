"""The exact search against all similarities at once."""

from __future__ import annotations

import numpy as np

from memtrain.families.search import ExactSearch


def test_pairs_are_the_nearest_neighbours_above_the_threshold() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    nearest = np.argsort(-similarity, axis=1)[:, :3]
    expected = {(min(a, b), max(a, b)) for a in range(50) for b in nearest[a].tolist() if similarity[a, b] >= 0.7}
    pairs, found = ExactSearch(neighbours=3, numbers=400)(vectors, 0.7)
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(expected)
    np.testing.assert_allclose(found, similarity[pairs[:, 0], pairs[:, 1]], rtol=1e-5)


def test_of_one_or_none_there_is_no_pair() -> None:
    for count in (0, 1):
        pairs, similarity = ExactSearch()(np.ones((count, 3), np.float32), -1)
        assert pairs.shape == (0, 2)
        assert len(similarity) == 0


def test_equal_descriptors_are_not_their_own_neighbours() -> None:
    pairs, _ = ExactSearch(neighbours=2)(np.ones((3, 1), np.float32), 0.5)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
