"""Exposure: how far a planted secret stands out among secrets that were never planted, in bits.

Method: a secret from a known generator is planted. Its siblings from the same generator are never planted. All are
ranked by how well the model knows them. Exposure is log2 |R| − log2 rank: the bits by which the model shortens a guess
of the secret. The best of n candidates (with the planted one) has log2 n bits. For a model that never saw the secret,
the mean is log2 n − mean log2 r, about 1.44 (:func:`null_mean`).
Source: Carlini et al., "The Secret Sharer" (USENIX Security 2019), definition of exposure and of its estimate by
sampling. Ties count against the secret, so that a model with the same value for all candidates has no exposure.
Trap: exposure cannot exceed log2 n, even for a secret that is known perfectly. `saturated` counts the secrets at this
bound. Siblings have to be equally difficult: an image with large plain areas has a low loss under every model.
Cannot: tell whether a secret can be extracted. It measures by how much the search becomes shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.functional.ranking import mean_with_interval


def ranks(values: Tensor, *, lower_is_known: bool) -> Tensor:
    """Rank each secret among its candidates.

    Args:
        values: the values `(C, n)`: each of C secrets in the first column, its n − 1 siblings in the others.
        lower_is_known: whether a lower value means known (a loss); for a similarity, a higher value does.

    Returns:
        `(C,)` int64, from 1.

    Raises:
        DataError: if there are no siblings.
    """
    if values.dim() != 2 or values.shape[1] < 2:
        raise DataError(
            f"Values {tuple(values.shape)} have no siblings to rank a secret among",
            expected="(C, n) with at least one sibling per secret",
            remedy="raise the number of siblings",
        )
    oriented = -values if lower_is_known else values
    return 1 + (oriented[:, 1:] >= oriented[:, :1]).sum(dim=1)


def exposure(rank: Tensor, candidates: int) -> Tensor:
    """Convert ranks `(C,)` among `candidates` to bits `(C,)` fp64."""
    return math.log2(candidates) - rank.double().log2()


def null_mean(candidates: int) -> float:
    """Return the mean exposure of secrets that were never planted."""
    return float(exposure(torch.arange(1, candidates + 1), candidates).mean())


def exposure_by_repetition(
    bits: Tensor, repetitions: Sequence[int], *, highest: float | None = None, seed: int = 0, level: float = 0.95
) -> list[dict[str, Any]]:
    """Summarize exposure by number of repetitions.

    Args:
        bits: the exposure of each secret, `(C,)`.
        repetitions: the C numbers of visits, per epoch or in all; 0 for secrets that were never planted.
        highest: the bound of the exposure; secrets at this bound are counted.
        seed: the seed of the intervals.
        level: the coverage of the intervals.

    Returns:
        By ascending `repeats`: `n`, `mean`, `interval` (None for one secret), `median`, `min`, `max` and `saturated`.
    """
    table = []
    for count in sorted(set(repetitions)):
        inside = bits[torch.tensor([one == count for one in repetitions])].double()
        found = mean_with_interval(inside, seed=seed, level=level)
        at_bound = 0 if highest is None else int((inside >= highest - 1e-9).sum())
        table.append(
            {
                "repeats": count,
                "n": len(inside),
                **found,
                "median": float(inside.median()),
                "min": float(inside.min()),
                "max": float(inside.max()),
                "saturated": at_bound,
            }
        )
    return table


def canary_exposure(
    *, losses: Tensor | None, similarity: Tensor | None, keys: Sequence[str], repetitions: Sequence[int]
) -> dict[str, Any]:
    """Measure the exposure of planted canaries.

    Args:
        losses: the denoising losses `(C, n)` of each canary's image and of its siblings' images, under its caption.
            None to leave the losses out.
        similarity: the similarities `(C, n)` of generations for each canary's caption to its image and to its siblings'
            images, the highest over generations. None to leave the similarities out.
        keys: the C keys of the canaries.
        repetitions: the C numbers of visits per epoch; 0 for canaries that were never planted, as a control.

    Returns:
        `null_mean` and `highest` (possible bits), `candidates`, and `by_loss` and `by_similarity` (or None), each with
        `by_repetition` and `each`: `key`, `repeats`, `rank` and `bits`.
    """
    given = [values for values in (losses, similarity) if values is not None]
    if not given or len({values.shape for values in given}) > 1 or given[0].shape[0] != len(keys):
        raise DataError(
            f"{len(keys)} canaries, with values {[tuple(values.shape) for values in given]}",
            expected="losses or similarities, with one row for each canary and equal numbers of candidates",
            remedy="pass values of the same canaries and siblings",
        )
    candidates = given[0].shape[1]
    top = math.log2(candidates)
    found: dict[str, Any] = {"candidates": candidates, "highest": top, "null_mean": null_mean(candidates)}
    for name, values, low in (("by_loss", losses, True), ("by_similarity", similarity, False)):
        if values is None:
            found[name] = None
            continue
        rank = ranks(values, lower_is_known=low)
        bits = exposure(rank, candidates)
        rows = zip(keys, repetitions, rank.tolist(), bits.tolist(), strict=True)
        found[name] = {
            "by_repetition": exposure_by_repetition(bits, repetitions, highest=top),
            "each": [{"key": key, "repeats": count, "rank": place, "bits": bit} for key, count, place, bit in rows],
        }
    return found
