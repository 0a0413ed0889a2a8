"""Searches among descriptors: they find what all similarities say, and shortening keeps what varies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from memtrain.evaluation.measures.nearest_descriptors import nearest_exact, nearest_faiss, principal_components


def blocks(descriptors: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(descriptors), size):
        yield start, descriptors[start : start + size]


def test_searches_find_what_all_similarities_say() -> None:
    """Blocks change nothing, FAISS finds the same, and equals come in the order of images."""
    draw = np.random.default_rng(0)
    descriptors = draw.normal(size=(300, 16)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    descriptors[200] = descriptors[10]
    wanted = np.argsort(-(descriptors[:20] @ descriptors.T), axis=1, kind="stable")[:, :7]
    for size in (64, 300):
        _, exact = nearest_exact(descriptors[:20], blocks(descriptors, size), 7)
        assert (exact == wanted).all()
        _, found = nearest_faiss(descriptors[:20], blocks(descriptors, size), 7)
        assert (np.sort(found, axis=1) == np.sort(wanted, axis=1)).all()


def test_principal_components_hold_what_varies() -> None:
    draw = np.random.default_rng(1)
    plane = draw.normal(size=(100, 2)) @ draw.normal(size=(2, 9)) + 3
    mean, components = principal_components(plane.astype(np.float32), 2)
    np.testing.assert_allclose((plane - mean) @ components @ components.T + mean, plane, atol=1e-4)
