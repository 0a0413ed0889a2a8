"""Nearest of many descriptors in a file: exact in blocks, or shortened and by FAISS.

Cost: a multiplication for each number of each descriptor and query. A file is read once for any number of queries. The
memory holds one block of the file, and the similarities to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtrain.families.faiss_search import faiss_module
from memtrain.families.stored_arrays import open_arrays

NUMBERS = 128
"""Number of values of a shortened descriptor."""
BLOCK = 16_384
"""Number of descriptors read at a time."""


def nearest_exact(
    queries: NDArray[np.float32], blocks: Iterator[tuple[int, NDArray[np.float32]]], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the nearest descriptors in blocks, each given with its start: similarity and place, `(n, k)`."""
    asked = torch.from_numpy(np.ascontiguousarray(queries))
    values, places = torch.zeros(len(asked), 0), torch.zeros(len(asked), 0, dtype=torch.int64)
    for start, block in blocks:
        best, at = (asked @ torch.from_numpy(block).T).topk(min(count, len(block)), dim=1)
        values, places = _kept(torch.cat([values, best], 1), torch.cat([places, at + start], 1), count)
    return values.numpy(), places.numpy()


def nearest_faiss(
    queries: NDArray[np.float32], blocks: Iterator[tuple[int, NDArray[np.float32]]], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Do the same as :func:`nearest_exact` with FAISS."""
    faiss = faiss_module()
    asked = np.ascontiguousarray(queries, np.float32)
    values, places = torch.zeros(len(asked), 0), torch.zeros(len(asked), 0, dtype=torch.int64)
    for start, block in blocks:
        found, at = faiss.knn(asked, block, min(count, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best, place = torch.from_numpy(found), torch.from_numpy(at) + start
        values, places = _kept(torch.cat([values, best], 1), torch.cat([places, place], 1), count)
    return values.numpy(), places.numpy()


def principal_components(
    descriptors: NDArray[np.float32], numbers: int = NUMBERS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the mean `(D,)` of descriptors `(n, D)`, and their first principal components `(D, numbers)`."""
    wide = descriptors.astype(np.float64)
    mean = wide.mean(axis=0)
    _, vectors = np.linalg.eigh((wide - mean).T @ (wide - mean))
    return mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :numbers], np.float32)


def shortened(
    given: NDArray[np.float32], mean: NDArray[np.float32], components: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Project descriptors on principal components, and scale them to unit length."""
    short = (given - mean) @ components
    length = np.linalg.norm(short, axis=1, keepdims=True)
    return np.ascontiguousarray(short / np.maximum(length, 1e-12), np.float32)


def _kept(values: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keep the best of each row; of equal values, the first places."""
    by_place = places.argsort(dim=1)
    values, places = values.gather(1, by_place), places.gather(1, by_place)
    best = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return values.gather(1, best), places.gather(1, best)


def blocks_of(path: Path, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Read the rows of an array of a file in blocks, each with its start.

    The file is mapped again for each block, because read parts of a mapped array count as memory of the process until
    the mapping ends.
    """
    count = len(open_arrays(path)[name])
    for start in range(0, count, BLOCK):
        yield start, np.array(open_arrays(path)[name][start : start + BLOCK])
