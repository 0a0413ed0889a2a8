"""Extraction without the originals: prompts whose generations are alike again and again.

Method: a prompt counts if each pair of `size` of its generations is alike. The count needs no training picture, so it
works for a model without its data, or with only an interface.
Source: the black-box attack of Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023),
§4.2: 500 generations per prompt, cliques of at least 10 in the graph of tile distances. The authors choose the
threshold of the graph, and no threshold carries over to other sizes of images.
Level: from prompts whose pictures the model never saw (held out, or made), at a stated false-positive rate
(:func:`clique_level`).
Cannot: tell a memorized picture from a subject that the model knows in one pose only. A prompt counts if the model
makes nearly the same image again and again, even if the model never saw the image. So the count shows where to look.
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
    """Return distances `(P, K, K)` of generations `(P, K, 3, H, W)` uint8: the largest over tiles."""
    return torch.stack([tile_distance(images) for images in generated])


def measured_distances(measure: CopyMeasure, generated: Tensor) -> Tensor:
    """Return distances `(P, K, K)` by a measure of copying: the negatives of its similarities."""
    described = [measure.describe(images) for images in generated]
    return torch.stack([-_symmetric(measure.similarity(features, features)) for features in described]).float()


def clique_distances(distances: Tensor, size: int) -> Tensor:
    """Return `(P,)`: the smallest distance within which each pair of some `size` generations of a prompt lies.

    Args:
        distances: the distances of the generations, `(P, K, K)`.
        size: the size of a clique, from 2 to K.

    Raises:
        ConfigurationError: if there are fewer generations than a clique has.
    """
    _check_size(distances, size)
    return torch.stack([clique_distance(one, size).amin() for one in distances])


def clique_level(null: Tensor, rate: float) -> float:
    """Return the distance below which a prompt of an unseen picture has a clique with a probability of at most `rate`.

    Args:
        null: the values `(n,)` of :func:`clique_distances` for prompts whose pictures the model never saw.
        rate: the false-positive rate.

    Raises:
        ValueError: if there are too few null values for the rate.
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
    """Count the prompts that can be extracted without the originals.

    Args:
        distances: the distances of the generations, `(P, K, K)`.
        level: the distance below which two generations are alike.
        size: the size of a clique; 10 of 500 in the paper.
        among: the prompts that count, `(P,)` bool; by default all.
        names: the P names of the prompts, for `found`.
        coverage: the coverage of the interval.

    Returns:
        `n` (prompts), `cliques`, `share`, `interval`, `size`, `level`, `generations` (of each prompt), and `found`: the
        names or rows of the prompts with a clique.
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
    # The level is strict, and has_clique also takes distances equal to the level.
    below = [[value if value < level else float("inf") for value in row] for row in values]
    return has_clique(below, list(range(len(values))), size, level=level)


def _symmetric(similarity: Tensor) -> Tensor:
    """Make a matrix product symmetric, because its halves may differ by rounding."""
    return torch.maximum(similarity, similarity.T)


def _check_size(distances: Tensor, size: int) -> None:
    if not 2 <= size <= distances.shape[1]:
        raise ConfigurationError(
            f"Cliques of {size} among {distances.shape[1]} generations of a prompt",
            expected="at least 2, and at most the number of generations",
            remedy="sample more images per prompt, or lower the size of cliques",
        )
