"""Exposure: how far a planted secret stands out among secrets that were never planted, in bits.

What: a secret of a known generator is planted; its siblings of the same generator never are. All are ranked by how well
the model knows them. Exposure is log2 |R| − log2 rank: the bits that the model takes off a guess of the secret. Of n
candidates (the planted one among them) the best has log2 n bits, and of a model that never saw the secret the mean is
log2 n − mean log2 r, about 1.44 (:func:`null_mean`).
Source: Carlini et al., "The Secret Sharer" (USENIX Security 2019), definition of exposure and of its estimate by
sampling.
Ties count against the secret, so that a model which answers the same to all exposes nothing.
Trap: exposure cannot exceed log2 n, however well a secret is known: `saturated` says how many stand at that bound. And
siblings have to be alike in difficulty: an image with large plain areas has a low loss under every model.
Cannot: say whether a secret can be extracted; it says how much less search is left.
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
    """Rank of each secret among its candidates.

    Args:
        values: `(C, n)`, of each of C secrets in the first column and of its n − 1 siblings behind it.
        lower_is_known: of a loss; of a similarity higher is.

    Returns:
        `(C,)` int64, from 1.

    Raises:
        DataError: without siblings.
    """
    if values.dim() != 2 or values.shape[1] < 2:
        raise DataError(
            f"Exposure of values {tuple(values.shape)}: nothing to rank among",
            expected="(C, n) with at least one sibling per secret",
            remedy="raise the number of siblings",
        )
    oriented = -values if lower_is_known else values
    return 1 + (oriented[:, 1:] >= oriented[:, :1]).sum(dim=1)


def exposure(rank: Tensor, candidates: int) -> Tensor:
    """Bits `(C,)` fp64 of ranks `(C,)` among as many candidates."""
    return math.log2(candidates) - rank.double().log2()


def null_mean(candidates: int) -> float:
    """Mean exposure of secrets that were never planted."""
    return float(exposure(torch.arange(1, candidates + 1), candidates).mean())


def exposure_by_repetition(
    bits: Tensor, repetitions: Sequence[int], *, highest: float | None = None, seed: int = 0, level: float = 0.95
) -> list[dict[str, Any]]:
    """The curve of exposure against repetition.

    Args:
        bits: `(C,)`.
        repetitions: C visits per epoch, or in all; 0 for secrets that were never planted.
        highest: bound of the exposure; what stands at it is counted.
        seed: of the intervals.
        level: coverage of the intervals.

    Returns:
        Ascending by `repeats`: `n`, `mean`, `interval` (None of one secret), `median`, `min`, `max` and `saturated`.
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
    """Exposure of planted canaries.

    Args:
        losses: `(C, n)` denoising loss of each canary's image, and of the images of siblings, under its caption. None
            to leave it out.
        similarity: `(C, n)` similarity of generations for each canary's caption to its image and to those of siblings,
            the highest over generations. None to leave it out.
        keys: C keys of canaries.
        repetitions: C visits of each per epoch; 0 for canaries that were never planted, as a control.

    Returns:
        `null_mean` and `highest` possible bits, `candidates`, and `by_loss` and `by_similarity` (or None), each with
        `by_repetition` and `each`: `key`, `repeats`, `rank` and `bits`.
    """
    given = [values for values in (losses, similarity) if values is not None]
    if not given or len({values.shape for values in given}) > 1 or given[0].shape[0] != len(keys):
        raise DataError(
            f"Exposure of {len(keys)} canaries by values {[tuple(values.shape) for values in given]}",
            expected="losses or similarities, one row for each canary and as many candidates",
            remedy="pass what was measured of the same canaries and siblings",
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
