"""The search for near descriptors: the nearest neighbors of each, found exactly in blocks.

Cost: n² D multiplications; 100,000 descriptors of 832 numbers need some minutes on one core, 30,000 some seconds.
Memory: one block of similarities, 64 MB, in addition to the descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from memtrain.families.chosen_rows import Rows
from memtrain.files.progress import SOON, progress_bar

NEIGHBOURS = 5
"""The largest number of neighbors of a descriptor; not all copies of a picture must be each other's neighbors."""


class Search(Protocol):
    """Finds pairs of near descriptors."""

    def __call__(self, descriptors: Rows, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return pairs in which one is among the nearest neighbors of the other.

        Args:
            descriptors: the descriptors of unit length, `(n, D)`.
            threshold: the similarity from which a pair is returned.

        Returns:
            The pairs `(m, 2)`, with the smaller index first, each once and in order, and their similarity, `(m,)`.
        """


@dataclass(frozen=True)
class ExactSearch:
    """Compares all descriptors with all others.

    Args:
        neighbours: the largest number of neighbors that are returned for each descriptor.
        numbers: the number of similarities in memory at a time.
    """

    neighbours: int = NEIGHBOURS
    numbers: int = 2**24

    def __call__(self, descriptors: Rows, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Compare all descriptors in blocks; see :class:`Search`."""
        count = len(descriptors)
        wanted = min(self.neighbours, count - 1)
        if wanted < 1:
            return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
        vectors = torch.from_numpy(np.ascontiguousarray(descriptors))
        first, second, found = [], [], []
        rows = max(1, self.numbers // count)
        starts = range(0, count, rows)
        for start in progress_bar(starts, "searching near copies", unit="block", leave=False, delay=SOON):
            similarity = vectors[start : start + rows] @ vectors.T
            own = torch.arange(len(similarity))
            similarity[own, own + start] = -torch.inf
            best, at = similarity.topk(wanted, dim=1)
            row, column = (best >= threshold).nonzero().unbind(dim=1)
            first.append(row + start)
            second.append(at[row, column])
            found.append(best[row, column])
        return ordered(torch.cat(first).numpy(), torch.cat(second).numpy(), torch.cat(found).numpy())


def ordered(
    first: NDArray[np.int64], second: NDArray[np.int64], similarity: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return pairs in the form of a search: the smaller index first, each once, in order."""
    pairs = np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)
    pairs, at = np.unique(pairs, axis=0, return_index=True)
    return pairs, similarity[at]
