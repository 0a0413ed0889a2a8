"""The search with FAISS: nearly all pairs of the exact search, in the same form, and the remedy where it is missing."""

from __future__ import annotations

import numpy as np
import pytest

from memtrain.errors import ConfigurationError
from memtrain.families import faiss_search
from memtrain.families.faiss_search import FaissSearch, faiss_is_there
from memtrain.families.search import ExactSearch

pytest.importorskip("faiss")


def descriptors(count: int, width: int = 32, *, copies: int = 0) -> np.ndarray:
    """Of unit length, in loose clusters as descriptors of pictures are; the last ones are nearly the first."""
    draws = np.random.default_rng(0)
    centres = draws.normal(size=(40, width))
    made = centres[draws.integers(0, 40, count)] + draws.normal(size=(count, width))
    made[count - copies :] = made[:copies] + 0.1 * draws.normal(size=(copies, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in pairs}


@pytest.mark.parametrize("width", [32, 200])
def test_it_finds_what_the_exact_search_finds(width: int) -> None:
    given = descriptors(5000, width, copies=200)
    exact, exact_similarity = ExactSearch()(given, 0.0)
    found, similarity = FaissSearch()(given, 0.0)
    assert len(as_set(exact) & as_set(found)) > 0.8 * len(exact)
    copies = {(row, 4800 + row) for row in range(200)}
    assert len(copies & as_set(found)) >= 198
    known = dict(zip(map(tuple, exact.tolist()), exact_similarity.tolist(), strict=True))
    both = [
        (value, known[tuple(pair)])
        for pair, value in zip(found.tolist(), similarity.tolist(), strict=True)
        if tuple(pair) in known
    ]
    assert np.abs(np.diff(both, axis=1)).max() < 1e-6


def test_the_form_is_that_of_the_exact_search() -> None:
    given = descriptors(1000, copies=50)
    pairs, similarity = FaissSearch()(given, 0.9)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert (np.lexsort((pairs[:, 1], pairs[:, 0])) == np.arange(len(pairs))).all()
    assert len(as_set(pairs)) == len(pairs)
    assert (similarity >= 0.9).all()
    assert (pairs.dtype, similarity.dtype) == (np.int64, np.float32)


def test_the_same_descriptors_give_the_same_pairs() -> None:
    given = descriptors(3000)
    one, other = FaissSearch()(given, 0.2), FaissSearch()(given, 0.2)
    assert (one[0] == other[0]).all()
    assert (one[1] == other[1]).all()


def test_each_has_so_many_neighbours_at_most_and_not_itself() -> None:
    given = np.repeat(descriptors(60), 20, axis=0)  # twenty equal ones of each
    pairs, similarity = FaissSearch(neighbours=3)(given, 0.99)
    assert (pairs[:, 0] // 20 == pairs[:, 1] // 20).all()
    assert len(pairs) <= 3 * len(given)
    assert set(range(len(given))) == set(pairs.ravel().tolist()), "each has a neighbour"
    assert similarity.min() > 0.99


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_few_descriptors(count: int) -> None:
    pairs, similarity = FaissSearch()(descriptors(max(count, 1))[:count], -1.0)
    assert len(pairs) == len(similarity)
    if count == 2:
        assert pairs.tolist() == [[0, 1]]


def test_without_faiss_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faiss_is_there()

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(faiss_search.importlib, "import_module", missing)
    with pytest.raises(ConfigurationError, match=r"(?s)not installed.*pip install 'memtrain\[scan\]'"):
        FaissSearch()(descriptors(10), 0.5)
