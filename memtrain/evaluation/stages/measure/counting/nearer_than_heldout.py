"""Are generations nearer to the training pictures than held-out pictures are? The test for data-copying.

What: held-out pictures come from the same distribution as the training pictures, so their distance to the nearest of
those is what "not copied" looks like. Generations that are nearer are copies, or nearly so; a model that generates new
pictures of the distribution would be nearer in half of all comparisons.
Source: Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative models" (AISTATS
2020): Z_U is the Mann-Whitney statistic of the distances, standardised (with their continuity correction), and C_T its
mean over cells of the space, weighted by the share of held-out pictures in each, cells with few generations left out.
Far below 0 means copying, far above 0 that the generations are far from the data (underfitting).
Trap: Z_U takes all generations as independent, which K generations of one prompt are not; so it is too far from 0 with
K > 1. `probability` has an interval by resampling prompts and held-out pictures, and is what to judge by.
Cannot: see a model that copies a few pictures and is far from the others; cells help where they are known. Generations
that are blurred or of another style are far from everything, and hide copying.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.shares import copies, share_of_generations
from memtrain.functional.ranking import highest

FEWEST = 20
"""A cell has to hold more generations than that, as in the authors' experiments."""


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
    """The data-copying test, and the plain share.

    Args:
        generated: `(P, K)` similarity of generations to the most alike training picture.
        heldout: `(n,)` similarity of held-out pictures to the most alike training picture.
        cells: which cell each of them is in, `(P, K)` and `(n,)` int64, such as a number of the nearest training
            picture's cluster. Default: there are none, and no C_T.
        rate: share of held-out pictures that the plain share compares with.
        seed: of the resampling.
        resamples: of the interval.
        level: coverage of the intervals.

    Returns:
        `n` generations, `nearer` of them than all but `rate` of the held-out pictures are, `share` and `interval`, with
        `expected`, what the share is without copying; `heldout`, their number; `probability` that a generation is
        nearer than a held-out picture (0.5 without copying) with `probability_interval`; `z_u`, and `c_t` or None;
        `copies`: whether the interval lies above 0.5.

    Raises:
        DataError: with fewer than two held-out pictures, or no generation.
    """
    if len(heldout) < 2 or not generated.numel():
        raise DataError(
            f"{len(heldout)} held-out pictures and {generated.numel()} generations",
            expected="at least 2 held-out pictures and a generation",
            remedy="hold more pictures out, or leave this count out",
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
    """How often one of `(m,)` is more alike than one of `(n,)`, ties counting one half."""
    ordered = heldout.double().sort().values
    values = generated.double()
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    return float((below + not_above).double().mean()) / (2 * len(ordered))


def standardised(generated: Tensor, heldout: Tensor) -> float:
    """Z_U of similarities `(m,)` and `(n,)`: below 0 where generations are nearer."""
    m, n = len(generated), len(heldout)
    farther = (1 - nearer_probability(generated, heldout)) * m * n
    return (farther - (m * n / 2 - 0.5)) / float((m * n * (m + n + 1) / 12) ** 0.5)


def over_cells(
    generated: Tensor, heldout: Tensor, *, cells: tuple[Tensor, Tensor], fewest: int = FEWEST
) -> float | None:
    """C_T: the mean of Z_U over cells, weighted by held-out pictures.

    Args:
        generated: `(P, K)` similarities.
        heldout: `(n,)` similarities.
        cells: `(P, K)` and `(n,)` int64.
        fewest: a cell of no more generations than that is left out.

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
    """Clusters of the training pictures by k-means (Lloyd's algorithm); a query is in that of its nearest picture.

    Args:
        features: `(M, ...)`.
        cells: their number; fewer come out where pictures are equal.
        seed: of the first centres.
        rounds: at most.

    Returns:
        `(M,)` int64.
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
    """Percentiles over resampled prompts and held-out pictures, of how often a generation is nearer."""
    # What a generation contributes depends on the held-out pictures through counts alone: pairs are compared once.
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
