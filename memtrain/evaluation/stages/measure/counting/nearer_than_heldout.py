"""The data-copying test: are generations nearer to the training pictures than held-out pictures are?

Method: held-out pictures come from the same distribution as the training pictures. So their distance to the nearest
training picture shows the distance without copying. Generations that are nearer are copies, or nearly so. A model that
generates new pictures of the distribution is nearer in half of all comparisons.
Source: Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative models" (AISTATS
2020). Z_U is the Mann-Whitney statistic of the distances, standardised (with their continuity correction). C_T is its
mean over cells of the space, weighted by the share of held-out pictures in each; cells with few generations are left
out.
Far below 0 means copying, far above 0 that the generations are far from the data (underfitting).
Trap: Z_U assumes independent generations, but K generations of one prompt are not independent. So Z_U is too far from 0
for K > 1. Judge by `probability`, whose interval resamples prompts and held-out pictures.
Cannot: see a model that copies a few pictures and is far from the others; known cells help. Generations that are
blurred or of another style are far from all pictures, and hide copying.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.shares import copies, share_of_generations
from memtrain.functional.ranking import highest

FEWEST = 20
"""A cell counts if it holds more generations than this, as in the authors' experiments."""


def nearer_than_heldout(
    generated: Tensor,
    heldout: Tensor,
    *,
    cells: tuple[Tensor, Tensor] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Run the data-copying test, and compute the plain share of nearer generations.

    Args:
        generated: the similarity of each generation to the most similar training picture, `(P, K)`.
        heldout: the similarity of each held-out picture to the most similar training picture, `(n,)`.
        cells: the cells of the generations, `(P, K)`, and of the held-out pictures, `(n,)`, int64; for instance the
            cluster of the nearest training picture. Without cells, there is no C_T.
        rate: the share of held-out pictures that the plain share allows to be nearer.
        seed: the seed of the resampling.
        resamples: the number of resamples of the interval.
        level: the coverage of the intervals.

    Returns:
        `n` (generations), `nearer` (generations nearer than all but `rate` of the held-out pictures), `share`,
        `interval`, `expected` (the share without copying), `heldout` (number of held-out pictures), `probability` (that
        a generation is nearer than a held-out picture; 0.5 without copying), `probability_interval`, `z_u`, `c_t` (or
        None), and `copies`: whether the interval lies above 0.5.

    Raises:
        DataError: if there are fewer than two held-out pictures, or no generations.
    """
    if len(heldout) < 2 or not generated.numel():
        raise DataError(
            f"{len(heldout)} held-out pictures and {generated.numel()} generations",
            expected="at least 2 held-out pictures and a generation",
            remedy="hold out more pictures, or leave out this count",
        )
    allowed = int(rate * len(heldout) + 1e-9)
    bar = float(heldout[highest(heldout, allowed + 1)[-1]])
    summary = share_of_generations(copies(generated, bar), name="nearer", level=level)
    probability = nearer_probability(generated.flatten(), heldout)
    low, high = _interval(generated, heldout, seed=seed, resamples=resamples, level=level)
    return {
        **summary,
        "expected": allowed / len(heldout),
        "heldout": len(heldout),
        "probability": probability,
        "probability_interval": [low, high],
        "z_u": standardised(generated.flatten(), heldout),
        "c_t": None if cells is None else over_cells(generated, heldout, cells=cells),
        "copies": low > 0.5,
    }


def nearer_probability(generated: Tensor, heldout: Tensor) -> float:
    """Return the probability that one of `generated` `(m,)` exceeds one of `heldout` `(n,)`; a tie counts one half."""
    ordered = heldout.double().sort().values
    values = generated.double()
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    return float((below + not_above).double().mean()) / (2 * len(ordered))


def standardised(generated: Tensor, heldout: Tensor) -> float:
    """Return Z_U of similarities `(m,)` and `(n,)`; it is below 0 if generations are nearer."""
    m, n = len(generated), len(heldout)
    farther = (1 - nearer_probability(generated, heldout)) * m * n
    return (farther - (m * n / 2 - 0.5)) / float((m * n * (m + n + 1) / 12) ** 0.5)


def over_cells(
    generated: Tensor, heldout: Tensor, *, cells: tuple[Tensor, Tensor], fewest: int = FEWEST
) -> float | None:
    """Return C_T: the mean of Z_U over cells, weighted by held-out pictures.

    Args:
        generated: the similarities of the generations, `(P, K)`.
        heldout: the similarities of the held-out pictures, `(n,)`.
        cells: the cells of the generations `(P, K)` and of the held-out pictures `(n,)`, int64.
        fewest: the number of generations that a cell has to exceed.

    Returns:
        None if no cell holds held-out pictures and enough generations.
    """
    total, weight = 0.0, 0
    for cell in cells[1].unique().tolist():
        mine, theirs = generated[cells[0] == cell], heldout[cells[1] == cell]
        if len(mine) > fewest:
            total += len(theirs) * standardised(mine, theirs)
            weight += len(theirs)
    return total / weight if weight else None


def training_cells(features: Tensor, cells: int, *, seed: int = 0, rounds: int = 50) -> Tensor:
    """Cluster the training pictures by k-means (Lloyd's algorithm). A query is in the cluster of its nearest picture.

    Args:
        features: the features of the training pictures, `(M, ...)`.
        cells: the number of clusters; equal pictures can give fewer.
        seed: the seed of the first centres.
        rounds: the largest number of rounds.

    Returns:
        The cluster of each picture, `(M,)` int64.
    """
    points = features.flatten(1).float()
    first = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:cells]
    centres, labels = points[first], torch.full((len(points),), -1)
    for _ in range(rounds):
        found = torch.cdist(points, centres).argmin(dim=1)
        if torch.equal(found, labels):
            break
        labels = found
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        count = labels.bincount(minlength=len(centres)).clamp(min=1)
        centres = torch.where((labels.bincount(minlength=len(centres)) > 0)[:, None], sums / count[:, None], centres)
    return labels


def _interval(generated: Tensor, heldout: Tensor, *, seed: int, resamples: int, level: float) -> tuple[float, float]:
    """Return percentiles of the probability that a generation is nearer, over resampled prompts and pictures."""
    # Resampling changes only the counts of prompts and held-out pictures, so pairs are compared once.
    ordered = heldout.double()
    pairs = (generated.double()[:, :, None] > ordered).double() + 0.5 * (generated.double()[:, :, None] == ordered)
    table = pairs.mean(dim=1)
    generator = torch.Generator().manual_seed(seed)
    prompts, n = table.shape
    values = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):
        rows = torch.randint(prompts, (prompts,), generator=generator).bincount(minlength=prompts).double()
        columns = torch.randint(n, (n,), generator=generator).bincount(minlength=n).double()
        values[index] = rows @ table @ columns / (prompts * n)
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
