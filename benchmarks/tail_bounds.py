"""Thresholds at rates that few held-out scores cannot show: what each way of setting one keeps, and how high it lies.

    python benchmarks/tail_bounds.py

Highest scores of simulated samples, as the monitor has them (means over the last twelve of 40 visits), and plain ones
with heavier tails. Each way has the rate on average over 150 draws of n held-out scores, the rate that 95 % of them
keep, both in percent, and the median threshold in standard deviations above the median score.

- `normal`: the prediction interval of a normal distribution, which the monitor took before;
- `fitted`: a generalised Pareto tail fitted to the highest quarter;
- `fitted, upper`: the upper end of a 90 % profile-likelihood interval of that;
- `tail bound`: :func:`memtrain.functional.statistics.tail_threshold`, which the monitor takes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

from memtrain.functional.statistics import tail_threshold

WINDOW, VISITS, FIRST = 12, 40, 6
"""Visits that evidence remembers, visits of a sample, and the visit of its first score."""
KINDS = ("normal", "heavy tails (t, 3)", "equal in pairs", "seven unsigned", "log-normal scores", "t(3) scores")


def highest(kind: str, count: int, chance: np.random.Generator) -> np.ndarray:
    """Highest scores `(count,)`."""
    if kind == "log-normal scores":
        return np.exp(chance.standard_normal(count))
    if kind == "t(3) scores":
        return chance.standard_t(3, count)
    columns = 7 if kind == "seven unsigned" else 1
    heavy = kind.startswith("heavy")
    shape = (count, VISITS, columns)
    values = chance.standard_t(3, shape) if heavy else chance.standard_normal(shape)
    values = values + 0.5 * chance.standard_normal((count, 1, columns))
    if kind == "equal in pairs":
        values[1::2] = values[::2]
    variance = 3.0 if heavy else 1.0
    share = 0.25 / (0.25 + variance)
    mean, dilution, best = np.zeros((count, columns)), 1.0, np.full(count, -np.inf)
    for visit in range(VISITS):
        rate = 1 / min(visit + 1, WINDOW)
        mean = mean + rate * (values[:, visit] / np.sqrt(0.25 + variance) - mean)
        dilution = (1 - rate) ** 2 * dilution + rate**2
        scaled = mean / np.sqrt(share + (1 - share) * dilution)
        score = np.sqrt((scaled**2).mean(axis=1)) if columns > 1 else scaled[:, 0]
        best = np.maximum(best, score) if visit + 1 >= FIRST else best
    return best


def normal(scores: np.ndarray, rate: float) -> float:
    """Upper end of a prediction interval."""
    count = len(scores)
    return float(scores.mean() + stats.t.isf(rate, count - 1) * scores.std(ddof=1) * np.sqrt(1 + 1 / count))


def _quarter(scores: np.ndarray) -> tuple[float, np.ndarray]:
    ordered = np.sort(scores)[::-1]
    count = min(max(10, len(scores) // 4), len(scores) - 1)
    return float(ordered[count]), ordered[:count] - ordered[count]


def fitted(scores: np.ndarray, rate: float) -> float:
    """A generalised Pareto tail, by maximum likelihood."""
    start, beyond = _quarter(scores)
    shape, _, scale = stats.genpareto.fit(beyond, floc=0)
    return start + float(stats.genpareto.isf(rate * len(scores) / len(beyond), min(max(shape, -0.5), 1.0), scale=scale))


def fitted_upper(scores: np.ndarray, rate: float) -> float:
    """The highest threshold among tails that are nearly as likely."""
    start, beyond = _quarter(scores)
    shapes = np.linspace(-0.4, 1.2, 33)[:, None]
    shapes = np.where(np.abs(shapes) < 1e-6, 1e-6, shapes)
    scales = beyond.mean() * np.geomspace(0.2, 4, 40)[None]
    inside = 1 + shapes[..., None] * beyond / scales[..., None]
    logs = np.log(np.clip(inside, 1e-300, None)).sum(axis=-1)
    likely = np.where((inside > 0).all(axis=-1), -len(beyond) * np.log(scales) - (1 + 1 / shapes) * logs, -np.inf)
    more = len(beyond) / (len(scores) * rate)
    found = start + scales * (more**shapes - 1) / shapes
    return float(found[likely > likely.max() - stats.chi2.ppf(0.9, 1) / 2].max())


WAYS: dict[str, Callable[[np.ndarray, float], float]] = {
    "normal": normal,
    "fitted": fitted,
    "fitted, upper": fitted_upper,
    "tail bound": lambda scores, rate: tail_threshold(torch.as_tensor(scores), rate),
}
"""By name."""


def main(draws: int = 150) -> None:
    """Print the table."""
    chance = np.random.default_rng(0)
    for kind in KINDS:
        known = np.sort(highest(kind, 100_000, chance))
        for count, rate in ((8, 0.01), (30, 0.01), (120, 0.001), (400, 0.001)):
            drawn = highest(kind, count * draws, chance).reshape(draws, count)
            cells = []
            for name, way in WAYS.items():
                thresholds = np.array([way(scores, rate) for scores in drawn])
                found = 100 * (1 - np.searchsorted(known, thresholds, side="right") / len(known))
                height = np.median((thresholds - np.median(known)) / known.std())
                cells.append(f"{name} {found.mean():.2f} / {np.quantile(found, 0.95):.2f} at {height:.1f}")
            print(f"{kind:18} n = {count:3}, {100 * rate:g} %: {'; '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
