"""The nearest neighbours of many descriptors, with FAISS: each is compared with some parts of the collection alone.

The descriptors are cut into about √n cells of an inverted file (IVF) by k-means on a sample of them; each is compared
with those in the cells nearest to it. Copies lie in one cell or in the next, so hardly any pair is missed.

Source: Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011; Douze et al., "The Faiss library",
2024. Needs the extra `scan`. Cost: n^1.5 D multiplications, a few thousand images a second on one core; two bytes of
memory for each number of a descriptor, besides the descriptors.

On paper, a billion images: with descriptors of 832 numbers the cells alone would take 1.7 TB, so the index has to be
compressed and cut finer: `OPQ64_256,IVF1048576_HNSW32,PQ64`, which is 72 bytes for each image, 72 GB of memory. k-means
on 40 million descriptors takes some hours on one GPU. Each image is compared with the 16,000 in 16 cells, about 500
images a second and core: 550 core-hours. Looking at the images takes as long, at 500 a second and core, and 7 TB of
disk for descriptors and thumbnails. It all splits into shards. Such an index is not built here.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtrain.errors import ConfigurationError
from memtrain.families.search import NEIGHBOURS, ordered

CELLS = 2.0
"""Cells, as a multiple of the root of the number of descriptors."""
SAMPLE = 40
"""Descriptors for each cell that k-means is given."""
CELLS_LOOKED_AT = 8
"""Of each descriptor."""
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
    """Compares descriptors with those in cells near them; see :class:`memtrain.families.search.Search`.

    Args:
        neighbours: of each descriptor that are returned at most.
        cells_looked_at: of each descriptor; more miss less and take longer.
        seed: of k-means.
    """

    neighbours: int = NEIGHBOURS
    cells_looked_at: int = CELLS_LOOKED_AT
    seed: int = 0

    def __call__(
        self, descriptors: NDArray[np.float32], threshold: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Pairs of which one is among the nearest neighbours of the other, and their similarity.

        Raises:
            ConfigurationError: if FAISS is not installed.
        """
        faiss = faiss_module()
        count, width = descriptors.shape
        if count < 2:
            return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
        cells = max(1, min(round(CELLS * math.sqrt(count)), count // SAMPLE))
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            coarse, width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.seed, index.cp.spherical = self.seed + 1, True
        some = np.random.default_rng(self.seed).permutation(count)[: cells * SAMPLE]
        index.train(np.ascontiguousarray(descriptors[np.sort(some)]))
        blocks = range(0, count, BLOCK)
        for start in blocks:
            index.add(np.ascontiguousarray(descriptors[start : start + BLOCK]))
        index.nprobe = self.cells_looked_at
        first, second, found = [], [], []
        for start in blocks:
            asked = np.ascontiguousarray(descriptors[start : start + BLOCK])
            # One more, because each descriptor finds itself.
            best, at = index.search(asked, self.neighbours + 1)
            own = np.arange(start, start + len(asked))[:, None]
            best[(at == own) | (at < 0)] = -np.inf
            # Where it does not, because more copies than neighbours are as near, the last one goes.
            order = np.argsort(-best, axis=1, kind="stable")[:, : self.neighbours]
            best, at = np.take_along_axis(best, order, 1), np.take_along_axis(at, order, 1)
            row, column = np.nonzero(best >= max(threshold, -1.0))
            first.append(row + start)
            second.append(at[row, column])
            found.append(best[row, column])
        return ordered(np.concatenate(first), np.concatenate(second), np.concatenate(found))
