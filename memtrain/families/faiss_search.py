"""The nearest neighbours of many descriptors, with FAISS: along a graph, instead of comparing all with all.

What: descriptors are brought to 128 numbers by principal components and linked to a graph of near ones (HNSW), in which
the neighbours of each are looked for; more than are wanted, of which those stay that are nearest by all numbers.
Cells of k-means (an inverted file) did worse in trials: a copy often lies in another cell than its original, and a
fifth of all cells had to be compared to find 94 of 100 copies among 10,000 images, where the graph finds 99.
Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
Small World graphs", TPAMI 2020; Douze et al., "The Faiss library", 2024. Needs the extra `scan`.
Cost: n log n; 0.4 ms an image among 44,000, on one core; 650 bytes of memory an image. Of the eight nearest neighbours
it has 96 of 100 copies there, where comparing all with all has 99; half the effort takes 0.2 ms and has 93.
The graph is built by one thread, because with several it would be another one each time.

On paper, a billion images: the same index in 8 bits (`PCA128,HNSW16_SQ8`), 270 bytes an image, 270 GB of memory on one
machine; about 2 ms an image to build and to search, 560 core-hours. Looking at the images costs 280 core-hours at
64 pixels and grows with their size; comparing candidates 1 ms an image, 280 core-hours. Descriptors and thumbnails take
6.4 TB of disk. Shards share the looking; such an index is not built here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtrain.errors import ConfigurationError
from memtrain.families.chosen_rows import Rows
from memtrain.families.search import NEIGHBOURS, ordered

NUMBERS = 128
"""That descriptors are brought to."""
SAMPLE = 20_000
"""Descriptors that principal components are computed from."""
LINKS, EFFORT = 16, 128
"""Of each descriptor in the graph, and candidates kept on the way through it."""
CANDIDATES = 32
"""Of each descriptor that are found in the graph; of these the nearest by all numbers are returned."""
BLOCK = 8192
"""Descriptors that are added and searched at a time."""


def faiss_module() -> Any:
    """FAISS.

    Raises:
        ConfigurationError: if it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ConfigurationError(
            "The search of so many images needs FAISS, which is not installed",
            expected="the extra `scan`",
            remedy="pip install 'memtrain[scan]' (or pip install faiss-cpu)",
        ) from error


def faiss_is_there() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


@dataclass(frozen=True)
class FaissSearch:
    """Finds neighbours along a graph; see :class:`memtrain.families.search.Search`.

    Args:
        neighbours: of each descriptor that are returned at most.
        candidates: of each descriptor that are found in the graph, of which these are the nearest by all numbers.
        effort: candidates kept on the way through the graph; more miss less and take longer.
        seed: of the choice of descriptors that principal components are computed from.
    """

    neighbours: int = NEIGHBOURS
    candidates: int = CANDIDATES
    effort: int = EFFORT
    seed: int = 0

    def __call__(self, descriptors: Rows, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Pairs of which one is among the nearest neighbours of the other, and their similarity.

        Raises:
            ConfigurationError: if FAISS is not installed.
        """
        faiss = faiss_module()
        count = len(descriptors)
        if count < 2:
            return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
        index, shorter = self._graph(faiss, descriptors)
        first, second, found = [], [], []
        for start in range(0, count, BLOCK):
            given = np.ascontiguousarray(descriptors[start : start + BLOCK])
            # One more, because each descriptor finds itself.
            _, at = index.search(shorter(given), min(count, self.candidates + 1))
            similarity = _similarities(given, descriptors, at)
            similarity[(at == np.arange(start, start + len(given))[:, None]) | (at < 0)] = -np.inf
            best = np.argsort(-similarity, axis=1, kind="stable")[:, : self.neighbours]
            at, similarity = np.take_along_axis(at, best, 1), np.take_along_axis(similarity, best, 1)
            row, column = np.nonzero((similarity >= threshold) & np.isfinite(similarity))
            first.append(row + start)
            second.append(at[row, column])
            found.append(similarity[row, column])
        return ordered(np.concatenate(first), np.concatenate(second), np.concatenate(found))

    def _graph(self, faiss: Any, descriptors: Rows) -> tuple[Any, Callable[[Any], Any]]:
        """The index, and what brings descriptors to its numbers."""
        count, width = descriptors.shape
        shorter: Callable[[Any], Any] = lambda given: given  # noqa: E731 (replaced below)
        if width > NUMBERS and count > 2 * NUMBERS:
            some = np.random.default_rng(self.seed).permutation(count)[:SAMPLE]
            components = faiss.PCAMatrix(width, NUMBERS)
            components.train(np.ascontiguousarray(descriptors[np.sort(some)]))
            width, shorter = NUMBERS, partial(_shortened, components)
        index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = self.effort, max(self.effort, self.candidates + 1)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            for start in range(0, count, BLOCK):
                index.add(shorter(np.ascontiguousarray(descriptors[start : start + BLOCK])))
        finally:
            faiss.omp_set_num_threads(threads)
        return index, shorter


def _shortened(components: Any, given: NDArray[np.float32]) -> NDArray[np.float32]:
    """Descriptors by their principal components, of unit length again."""
    short = components.apply(given)
    length = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.maximum(length, 1e-12), np.float32)


def _similarities(given: NDArray[np.float32], descriptors: Rows, at: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of n descriptors to k others each, by all of their numbers, `(n, k)`."""
    found = np.empty(at.shape, np.float32)
    for column in range(at.shape[1]):
        found[:, column] = np.einsum("nd,nd->n", given, descriptors[at[:, column]])
    return found
