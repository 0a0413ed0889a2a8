"""Border keys: memory of each sample's secret border level, as key errors and bits, by repetition, against a null.

Method: the model paints the border of a picture K times. The mean of the painted levels is its answer, and the distance
of the answer to the trained level is the key error. `bits` is the gain over a blind guess: minus log2 of the
probability that a random level lies as near. Held-out pictures also have levels, which the model never saw. They are
the null. Key errors alone miss much. A model that half remembers paints a level between the secret and its usual level.
It is far off, although its answers follow the levels closely. So each sample also has an *agreement*: (answer − mean
answer of the held-out pictures) · (level − 1/2). It is positive if the answer moves toward the secret. Without memory,
answers and levels are independent, and agreements are distributed like those of held-out pictures. A sample counts as
remembered by the rank of its error or of its agreement among theirs; the p-value allows for both tests. For each number
of repetitions there is the correlation of answers with levels.
Source: SolidMark (Kommineni et al., "SolidMark: Evaluating Image Memorization in Generative Models", arXiv 2503.00592)
for key errors. Carlini et al., "The Secret Sharer" (USENIX Security 2019) for exposure in bits, here against a uniform
guess instead of a ranking. The agreement is ours.
Cannot: exceed about eight bits, the resolution of a grey level. An answer that is always middle grey has errors of a
quarter on average, smaller than confident wrong answers have. So compare with the held-out pictures, not with zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.exposure import exposure_by_repetition
from memtrain.functional.ranking import auroc, bootstrap_interval

FINEST = 1 / 512
"""Half a grey level, the smallest error that can be measured."""


def key_errors(painted: Tensor, levels: Tensor) -> Tensor:
    """Return `(P,)`: the distance of the mean of painted levels `(P, K)` to the trained levels `(P,)`."""
    return (painted.double().mean(dim=1) - levels.double()).abs()


def guess_bits(painted: Tensor, levels: Tensor) -> Tensor:
    """Return the bits `(P,)` that answers `(P, K)` gain over a blind guess of levels `(P,)`, uniform from 0 to 1."""
    answer, error = painted.double().mean(dim=1), key_errors(painted, levels).clamp(min=FINEST)
    near = (answer + error).clamp(max=1) - (answer - error).clamp(min=0)
    return -near.log2()


def agreement(painted: Tensor, levels: Tensor, heldout: Tensor) -> Tensor:
    """Return the agreement `(P,)` of answers `(P, K)` with levels `(P,)`, relative to `heldout` samples `(P,)` bool."""
    answer = painted.double().mean(dim=1)
    return (answer - answer[heldout].mean()) * (levels.double() - 0.5)


def p_values(scores: Tensor, null: Tensor) -> Tensor:
    """Return the p-values `(P,)` of scores, by the scores `(n,)` of pictures never seen."""
    return (1 + (null[None] >= scores[:, None]).sum(dim=1)).double() / (len(null) + 1)


def correlation(painted: Tensor, levels: Tensor) -> dict[str, Any] | None:
    """Correlate answers `(P, K)` with levels `(P,)`, with Fisher's 95 % interval; None for fewer than four samples."""
    if len(levels) < 4:
        return None
    pair = torch.stack([painted.double().mean(dim=1), levels.double()])
    value = float(torch.corrcoef(pair)[0, 1].nan_to_num().clamp(-1 + 1e-9, 1 - 1e-9))
    half = 1.96 / (len(levels) - 3) ** 0.5
    ends = [math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1)]
    return {"value": value, "interval": ends}


def border_exposure(
    painted: Tensor,
    levels: Tensor,
    *,
    keys: Sequence[str],
    repetitions: Sequence[int],
    rate: float = 0.01,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure key errors and exposure of samples.

    Args:
        painted: the levels that the model paints, `(P, K)`, from 0 to 1.
        levels: the secret levels, `(P,)`; the model never saw those of held-out samples.
        keys: the P keys.
        repetitions: the P numbers of visits per epoch; 0 for held-out samples, which are the null.
        rate: the false-positive rate at which a sample counts as remembered; raised to the lowest rate that the number
            of held-out samples allows.
        seed: the seed of the intervals.

    Returns:
        `heldout`: the number of held-out samples. `rate`: the rate that was used. `by_repetition`: by ascending
        `repeats` (0: held out) `n`, the figures of
        :func:`memtrain.evaluation.stages.measure.counting.exposure.exposure_by_repetition` as `errors` and as `bits`,
        the number `remembered` at the rate, and the `correlation` of answers with levels (`value`, `interval`).
        `below_unique`, `below_heldout` and `unique_below_heldout`: the probability that the error of a repeated sample
        is smaller than that of a sample visited once or held out (0.5 without effect), each with `n`, `against` and
        `interval`, or None. `agrees_above_unique` and `agrees_above_heldout`: the same probability of a larger
        agreement. `each`: `key`, `repeats`, `level`, `answer`, `error`, `bits`, `agreement` and `p_value` of each
        sample, the most exposed first.

    Raises:
        DataError: if there are no held-out samples, or arguments do not belong together.
    """
    count = torch.tensor(list(repetitions))
    held = count == 0
    if not len(painted) == len(levels) == len(keys) == len(count) or not held.any():
        raise DataError(
            f"{len(painted)} answers, {len(levels)} levels, {len(keys)} keys and {int(held.sum())} held-out samples",
            expected="one of each per sample, and held-out samples",
            remedy="include the borders of held-out pictures",
        )
    rate = max(rate, 2 / (int(held.sum()) + 1))
    errors, bits = key_errors(painted, levels), guess_bits(painted, levels)
    agreed = agreement(painted, levels, held)
    # Each sample has two tests, so the smaller p-value counts twice.
    chance = 2 * torch.minimum(p_values(-errors, -errors[held]), p_values(agreed, agreed[held])).clamp(max=0.5)
    order = bits.argsort(descending=True, stable=True).tolist()
    return {
        "heldout": int(held.sum()),
        "rate": rate,
        "generations": painted.shape[1],
        "by_repetition": _by_repetition(painted, levels, repetitions, remembered=chance <= rate, seed=seed),
        "below_unique": _smaller(errors, count > 1, count == 1, seed=seed),
        "below_heldout": _smaller(errors, count > 1, held, seed=seed),
        "unique_below_heldout": _smaller(errors, count == 1, held, seed=seed),
        "agrees_above_unique": _smaller(-agreed, count > 1, count == 1, seed=seed),
        "agrees_above_heldout": _smaller(-agreed, count > 1, held, seed=seed),
        "each": [
            {
                "key": keys[row],
                "repeats": int(count[row]),
                "level": float(levels[row]),
                "answer": float(painted[row].double().mean()),
                "error": float(errors[row]),
                "bits": float(bits[row]),
                "agreement": float(agreed[row]),
                "p_value": float(chance[row]),
            }
            for row in order
        ],
    }


def _by_repetition(
    painted: Tensor, levels: Tensor, repetitions: Sequence[int], *, remembered: Tensor, seed: int
) -> list[dict[str, Any]]:
    """Make a row for each number of repetitions."""
    errors = exposure_by_repetition(key_errors(painted, levels), repetitions, seed=seed)
    bits = exposure_by_repetition(guess_bits(painted, levels), repetitions, seed=seed)
    table = []
    for error, bit in zip(errors, bits, strict=True):
        repeats, n = error["repeats"], error["n"]
        inside = torch.tensor(list(repetitions)) == repeats
        figures = [
            {name: value for name, value in one.items() if name not in ("repeats", "n", "saturated")}
            for one in (error, bit)
        ]
        table.append(
            {
                "repeats": repeats,
                "n": n,
                "errors": figures[0],
                "bits": figures[1],
                "remembered": int(remembered[inside].sum()) if repeats else None,
                "correlation": correlation(painted[inside], levels[inside]),
            }
        )
    return table


def _smaller(errors: Tensor, some: Tensor, others: Tensor, *, seed: int) -> dict[str, Any] | None:
    """Return the probability that an error of `some` is smaller than one of `others`, with its interval."""
    if not some.any() or not others.any():
        return None
    chosen = some | others
    values, labels = -errors[chosen], some[chosen]
    interval = bootstrap_interval(auroc, values, labels, seed=seed)
    return {
        "n": int(some.sum()),
        "against": int(others.sum()),
        "probability": float(auroc(values, labels)),
        "interval": list(interval),
    }
