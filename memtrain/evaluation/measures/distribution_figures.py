"""Fréchet and kernel distances of generations to real images, each with an interval.

Method: :func:`frechet_figure` is FID or CLIP-FID, depending on the network of the features. :func:`kernel_figure` is
KID (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018): the unbiased estimate of the squared maximum mean
discrepancy under the kernel (xᵀy / d + 1)³. It is taken over all images; torchmetrics and clean-fid take the mean over
random subsets, which is the same number for a subset as large as the data.
Intervals: bootstrap over prompts, with all generations of a prompt together, and over real images. A Fréchet distance
is biased upwards, and the bias grows for fewer images. A resample repeats images, and is biased again (Chong and
Forsyth, "Effectively Unbiased FID and Inception Score", CVPR 2020). So its interval is the value plus and minus the
standard error of the bootstrap. It shows the spread for another draw of as many images, not the distance for infinitely
many. KID has no bias, and has a percentile interval.
Cost: without the features, a second or less below 500 images, and minutes with thousands.
Cannot: be compared between programs, which resize differently, or between numbers of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.frechet import frechet_distance, frechet_value

FEWEST = 3
"""Smallest number of prompts, and of real images, for an interval."""
MOST_COMPARED = 4000
"""Largest number of images of each kind that KID compares; from more images, this many are drawn at random."""
WORK = 2e10
"""Largest number of multiplications for the resamples of a Fréchet distance; more work takes fewer resamples."""
FEWEST_RESAMPLES = 20


def frechet_figure(
    real: Tensor, generated: Tensor, *, groups: Sequence[int], seed: int = 0, resamples: int = 200, level: float = 0.95
) -> dict[str, Any]:
    """Compute a Fréchet distance, with an interval from its standard error.

    Args:
        real: the features of real images, `(n, D)`.
        generated: the features of generations, `(m, D)`.
        groups: the number of the prompt of each generation, m numbers.
        seed: the seed of the bootstrap.
        resamples: the largest number of resamples; long work takes fewer.
        level: the coverage of the interval.

    Returns:
        The result of :func:`memtrain.evaluation.measures.frechet.frechet_distance`, with `interval`, `standard_error`,
        `resamples` and `note`.

    Raises:
        DataError: if there are fewer than two images of one kind.
    """
    found = frechet_distance(real, generated)
    n, m, width = len(real), len(generated), real.shape[1]
    short = min(n, m, width)
    count = int(min(resamples, max(FEWEST_RESAMPLES, WORK / (max(min(n, width), min(m, width)) * short**2))))
    members = _members(groups, m)
    error = None
    if min(len(members), n) >= FEWEST:
        generator = torch.Generator().manual_seed(seed)
        values = []
        for _ in range(count):
            rows = torch.randint(n, (n,), generator=generator)
            chosen = torch.randint(len(members), (len(members),), generator=generator).tolist()
            values.append(frechet_value(real[rows], generated[torch.cat([members[one] for one in chosen])]))
        error = float(torch.tensor(values, dtype=torch.float64).std())
    few = "" if found["full_rank"] else f" With fewer images than the {width} feature dimensions, most of it is bias."
    note = f"biased upwards with few images; compare only figures of equal numbers of images.{few}"
    half = None if error is None else math.sqrt(2) * float(torch.erfinv(torch.tensor(level).double())) * error
    interval = None if half is None else [max(0.0, found["value"] - half), found["value"] + half]
    return {
        **found,
        "interval": interval,
        "standard_error": error,
        "resamples": 0 if error is None else count,
        "note": note,
    }


def kernel_figure(
    real: Tensor, generated: Tensor, *, groups: Sequence[int], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict[str, Any]:
    """A kernel distance (KID), with a percentile interval.

    Args:
        real: `(n, D)` features of real images.
        generated: `(m, D)` features of generations.
        groups: m numbers, the prompt of each generation.
        seed: seed of the bootstrap, and of the choice among too many images.
        resamples: number of resamples of the bootstrap.
        level: coverage of the interval.

    Returns:
        `value`, `interval`, `standard_error`, `n_real` and `n_generated`.

    Raises:
        DataError: with fewer than two images of one kind.
    """
    if min(len(real), len(generated)) < 2:
        raise DataError(
            f"{len(real)} real and {len(generated)} generated images have no distribution to compare",
            expected="at least 2 images each",
            remedy="sample more images",
        )
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(list(groups))
    rows, columns = (torch.randperm(len(one), generator=generator)[:MOST_COMPARED] for one in (real, generated))
    x, y, numbers = real[rows].double(), generated[columns].double(), numbers[columns]
    prompts = numbers.unique(return_inverse=True)[1]
    count = int(prompts.max()) + 1
    member = torch.nn.functional.one_hot(prompts, count).double()
    among_real, across = _kernel(x, x).fill_diagonal_(0), _kernel(x, y) @ member
    among = member.T @ _kernel(y, y).fill_diagonal_(0) @ member
    sizes = member.sum(dim=0)

    def distance(real_counts: Tensor, prompt_counts: Tensor) -> Tensor:
        """`(R,)` for counts `(R, n)` of real images and `(R, P)` of prompts; no image meets itself."""
        held, made = real_counts.sum(dim=1), prompt_counts @ sizes
        pairs = held**2 - (real_counts**2).sum(dim=1)
        made_pairs = made**2 - (prompt_counts**2) @ sizes
        first = ((real_counts @ among_real) * real_counts).sum(dim=1) / pairs
        second = ((prompt_counts @ among) * prompt_counts).sum(dim=1) / made_pairs
        return first + second - 2 * ((real_counts @ across) * prompt_counts).sum(dim=1) / (held * made)

    value = distance(torch.ones(1, len(x)).double(), torch.ones(1, count).double())
    interval = error = None
    if min(count, len(x)) >= FEWEST:
        values = distance(*(_drawn(size, resamples, generator) for size in (len(x), count)))
        values = values[values.isfinite()]
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        interval, error = torch.quantile(values, ends).tolist(), float(values.std())
    return {
        "value": float(value),
        "interval": interval,
        "standard_error": error,
        "n_real": len(x),
        "n_generated": len(y),
    }


def _drawn(size: int, resamples: int, generator: torch.Generator) -> Tensor:
    """`(R, size)` fp64, how often each is in each resample."""
    drawn = torch.randint(size, (resamples, size), generator=generator)
    counts = torch.zeros(resamples, size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def _members(groups: Sequence[int], count: int) -> list[Tensor]:
    """Return the rows of each group."""
    if len(groups) != count:
        raise DataError(
            f"{len(groups)} groups for {count} generations",
            expected="one group per generation",
            remedy="pass the prompt of each generation",
        )
    found: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        found.setdefault(int(group), []).append(row)
    return [torch.tensor(rows) for rows in found.values()]


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
