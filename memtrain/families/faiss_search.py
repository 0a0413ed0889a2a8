"""The nearest neighbors of many descriptors with FAISS: along a graph, instead of comparing all with all.

Principal components reduce descriptors to 128 numbers, and a graph (HNSW) links near ones. The search for each
descriptor's neighbors follows this graph. It finds more candidates than wanted and keeps the nearest ones by all
numbers. Cells of k-means (an inverted file) did worse in trials, because a copy often lies in another cell than its
original. A fifth of all cells had to be compared to find 94 of 100 copies among 10,000 images. The graph finds 99.
Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
Small World graphs", TPAMI 2020; Douze et al., "The Faiss library", 2024. Needs the extra `scan`.
Cost: n log n. It is 0.4 ms an image among 44,000 on one core, and 650 bytes of memory an image. The eight nearest
neighbors then hold 96 of 100 copies; comparing all with all finds 99. Half the effort takes 0.2 ms and finds 93. One
thread builds the graph, because several threads would build a different one each time.

An estimate for a billion images: the same index in 8 bits (`PCA128,HNSW16_SQ8`) takes 270 bytes an image, which is 270
GB of memory on one machine. It takes about 2 ms an image to build and to search, which is 560 core-hours. Looking at
the images costs 280 core-hours at 64 pixels and grows with their size. Comparing candidates costs 1 ms an image, 280
core-hours. Descriptors and thumbnails take 6.4 TB of disk. Shards divide the looking among machines. Such an index is
not built here.
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
from memtrain.files.progress import SOON, progress_bar

NUMBERS = 128
"""The number of components of the reduced descriptors."""
SAMPLE = 20_000
"""The number of descriptors that determine the principal components."""
LINKS, EFFORT = 16, 128
"""The number of links of each descriptor in the graph, and of candidates kept on the way through it."""
CANDIDATES = 32
"""The number of candidates of each descriptor; the nearest of them by all numbers are returned."""
BLOCK = 8192
"""The number of descriptors that are added and searched at a time."""


def faiss_module() -> Any:
    """Import FAISS.

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
    """Return whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


@dataclass(frozen=True)
class FaissSearch:
    """Finds neighbors along a graph; see :class:`memtrain.families.search.Search`.

    Args:
        neighbours: the largest number of neighbors that are returned for each descriptor.
        candidates: the number of candidates of each descriptor in the graph; the nearest of them are returned.
        effort: the number of candidates kept on the way through the graph; more miss less and take longer.
        seed: the seed of the choice of descriptors for the principal components.
    """

    neighbours: int = NEIGHBOURS
    candidates: int = CANDIDATES
    effort: int = EFFORT
    seed: int = 0

    def __call__(self, descriptors: Rows, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return pairs in which one is among the nearest neighbors of the other, and their similarity.

        Raises:
            ConfigurationError: if FAISS is not installed.
        """
        faiss = faiss_module()
        count = len(descriptors)
        if count < 2:
            return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
        index, shorter = self._graph(faiss, descriptors)
        first, second, found = [], [], []
        starts = range(0, count, BLOCK)
        for start in progress_bar(starts, "searching near copies", unit="block", leave=False, delay=SOON):
            given = np.ascontiguousarray(descriptors[start : start + BLOCK])
            # One candidate more, because each descriptor finds itself.
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
        """Build the index, and return it with the function that reduces descriptors to its numbers."""
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
            starts = range(0, count, BLOCK)
            for start in progress_bar(starts, "building the index", unit="block", leave=False, delay=SOON):
                index.add(shorter(np.ascontiguousarray(descriptors[start : start + BLOCK])))
        finally:
            faiss.omp_set_num_threads(threads)
        return index, shorter


def _shortened(components: Any, given: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce descriptors to their principal components, at unit length again."""
    short = components.apply(given)
    length = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.maximum(length, 1e-12), np.float32)


def _similarities(given: NDArray[np.float32], descriptors: Rows, at: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the similarities of n descriptors to k others each, by all of their numbers, `(n, k)`."""
    found = np.empty(at.shape, np.float32)
    for column in range(at.shape[1]):
        found[:, column] = np.einsum("nd,nd->n", given, descriptors[at[:, column]])
    return found
