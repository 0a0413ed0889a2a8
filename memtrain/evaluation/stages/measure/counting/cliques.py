"""Extraction without the originals: prompts whose generations come out alike again and again.

What: a prompt counts if `size` of its generations are all alike, two by two. No training picture is needed, so this is
what can be said of a model whose data are gone, or of which only an interface is known.
Source: the black-box attack of Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023),
§4.2: 500 generations per prompt, cliques of at least 10 in the graph of tile distances; the threshold of the graph is
theirs to choose, too, and no number of it carries over to other sizes of images.
Level: from prompts whose pictures the model never saw (held out, or made), at a stated false-positive rate
(:func:`clique_level`).
Cannot: tell a memorized picture from a subject that the model knows in one pose only: a model that makes nearly the
same image of a prompt without having seen it is counted. So it says what may be memorized, and where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.detectors.tile_l2 import clique_distance, has_clique, tile_distance
from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.copying.base import CopyMeasure
from memtrain.evaluation.stages.measure.counting.shares import counted
from memtrain.functional.ranking import lower_threshold


def tile_distances(generated: Tensor) -> Tensor:
    """Distances `(P, K, K)` of generations `(P, K, 3, H, W)` uint8, the largest over tiles; lower means alike."""
    return torch.stack([tile_distance(images) for images in generated])


def measured_distances(measure: CopyMeasure, generated: Tensor) -> Tensor:
    """The same `(P, K, K)` by a measure of copying: its similarities with the sign turned."""
    described = [measure.describe(images) for images in generated]
    return torch.stack([-_symmetric(measure.similarity(features, features)) for features in described]).float()


def clique_distances(distances: Tensor, size: int) -> Tensor:
    """`(P,)` smallest distance within which `size` generations of each prompt lie, two by two.

    Args:
        distances: `(P, K, K)`.
        size: of a clique, from 2 to K.

    Raises:
        ConfigurationError: if there are fewer generations than a clique has.
    """
    _check_size(distances, size)
    return torch.stack([clique_distance(one, size).amin() for one in distances])


def clique_level(null: Tensor, rate: float) -> float:
    """Distance below which a prompt of a picture never seen has a clique with at most the stated probability.

    Args:
        null: `(n,)` of :func:`clique_distances`, of prompts whose pictures the model never saw.
        rate: false-positive rate.

    Raises:
        ValueError: if there are too few of them for the rate.
    """
    return lower_threshold(null, rate)


def count_cliques(
    distances: Tensor,
    level: float,
    *,
    size: int,
    among: Tensor | None = None,
    names: Sequence[str] | None = None,
    coverage: float = 0.95,
) -> dict[str, Any]:
    """The share of prompts that would be extracted without the originals.

    Args:
        distances: `(P, K, K)`.
        level: distance below which two generations are alike.
        size: of a clique; ten of 500 in the paper.
        among: `(P,)` bool, the prompts that count; by default all.
        names: P names, for `found`.
        coverage: of the interval.

    Returns:
        `n` prompts, `cliques`, `share`, `interval`, `size`, `level`, `generations` of each prompt and `found`: names of
        the prompts, or their rows.
    """
    _check_size(distances, size)
    rows = torch.arange(len(distances)) if among is None else among.nonzero().squeeze(1)
    below = [row for row in rows.tolist() if _has(distances[row], level, size)]
    return {
        **counted(len(below), len(rows), name="cliques", level=coverage),
        "size": size,
        "level": level,
        "generations": distances.shape[1],
        "found": [row if names is None else names[row] for row in below],
    }


def _has(distances: Tensor, level: float, size: int) -> bool:
    values = distances.tolist()
    # Strictly below, as the level is meant; has_clique takes what is not above.
    below = [[value if value < level else float("inf") for value in row] for row in values]
    return has_clique(below, list(range(len(values))), size, level=level)


def _symmetric(similarity: Tensor) -> Tensor:
    """Of a matrix product whose halves may differ by rounding."""
    return torch.maximum(similarity, similarity.T)


def _check_size(distances: Tensor, size: int) -> None:
    if not 2 <= size <= distances.shape[1]:
        raise ConfigurationError(
            f"Cliques of {size} among {distances.shape[1]} generations of a prompt",
            expected="at least 2, and no more than there are generations",
            remedy="sample more images per prompt, or lower the size of cliques",
        )
