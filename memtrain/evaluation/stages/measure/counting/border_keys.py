"""What the borders that a model paints say about each sample: key errors and bits, by repetition, against a null.

What: the model is asked for the border of a picture K times; the mean of the levels that it paints is its answer, and
the distance to the level that was trained on the key error. `bits` is what that answer takes off a blind guess: minus
log2 of the probability that a level drawn at random lies as near. Held-out pictures have levels too, which the model
never saw: their errors are the null, and `p_value` of a sample is the share of them that are no larger.
Source: SolidMark (Kommineni et al., "SolidMark: Evaluating Image Memorization in Generative Models", arXiv 2503.00592)
for key errors; Carlini et al., "The Secret Sharer" (USENIX Security 2019) for exposure in bits, here against a uniform
guess in place of a ranking.
Cannot: exceed about eight bits, the resolution of a grey level; and an answer that is always middle grey has errors of
a quarter on average, smaller than those of wrong convictions: compare with the held-out pictures, not with zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.exposure import exposure_by_repetition
from memtrain.functional.ranking import auroc, bootstrap_interval

FINEST = 1 / 512
"""Half a grey level: no smaller error is told from it."""


def key_errors(painted: Tensor, levels: Tensor) -> Tensor:
    """`(P,)` distance of the mean of painted levels `(P, K)` to the levels `(P,)` that were trained on."""
    return (painted.double().mean(dim=1) - levels.double()).abs()


def guess_bits(painted: Tensor, levels: Tensor) -> Tensor:
    """Bits `(P,)` that answers `(P, K)` take off a blind guess of levels `(P,)`, uniform from 0 to 1."""
    answer, error = painted.double().mean(dim=1), key_errors(painted, levels).clamp(min=FINEST)
    near = (answer + error).clamp(max=1) - (answer - error).clamp(min=0)
    return -near.log2()


def p_values(errors: Tensor, null: Tensor) -> Tensor:
    """`(P,)` probability of an error as small, by the errors `(n,)` of pictures never seen."""
    return (1 + (null[None] <= errors[:, None]).sum(dim=1)).double() / (len(null) + 1)


def border_exposure(
    painted: Tensor,
    levels: Tensor,
    *,
    keys: Sequence[str],
    repetitions: Sequence[int],
    rate: float = 0.01,
    seed: int = 0,
) -> dict[str, Any]:
    """Key errors and exposure of samples.

    Args:
        painted: `(P, K)` levels that the model paints, from 0 to 1.
        levels: `(P,)` that were trained on; of held-out samples, that would have been.
        keys: P keys.
        repetitions: P visits of each sample per epoch; 0 for held-out ones, the null.
        rate: false-positive rate at which a sample counts as remembered; raised to what the held-out samples can
            promise.
        seed: of the intervals.

    Returns:
        `heldout`, their number; `rate`; `by_repetition`: by ascending `repeats` (0: held out) the figures of
        :func:`memtrain.evaluation.stages.measure.counting.exposure.exposure_by_repetition` as `errors` and as `bits`,
        and the `remembered` at the rate; `below_unique` and `below_heldout`: probability that the error of a repeated
        sample is smaller than that of one visited once, and of a held-out one (0.5: repetition does nothing), each with
        `n`, `against` and `interval`, or None; `each`: `key`, `repeats`, `level`, `answer`, `error`, `bits` and
        `p_value`, the most exposed first.

    Raises:
        DataError: if there are no held-out samples, or arguments do not belong together.
    """
    count = torch.tensor(list(repetitions))
    held = count == 0
    if not len(painted) == len(levels) == len(keys) == len(count) or not held.any():
        raise DataError(
            f"{len(painted)} answers, {len(levels)} levels, {len(keys)} keys and {int(held.sum())} held-out samples",
            expected="one of each per sample, and held-out samples",
            remedy="ask for the borders of held-out pictures, too",
        )
    rate = max(rate, 1 / (int(held.sum()) + 1))
    errors, bits = key_errors(painted, levels), guess_bits(painted, levels)
    chance = p_values(errors, errors[held])
    by_repetition = []
    for error, bit in zip(
        exposure_by_repetition(errors, repetitions, seed=seed),
        exposure_by_repetition(bits, repetitions, seed=seed),
        strict=True,
    ):
        repeats, n = error.pop("repeats"), error.pop("n")
        for one in (error, bit):
            one.pop("saturated")
        bits_of = {name: value for name, value in bit.items() if name not in ("repeats", "n")}
        inside = count == repeats
        remembered = None if repeats == 0 else int((chance[inside] <= rate).sum())
        by_repetition.append({"repeats": repeats, "n": n, "errors": error, "bits": bits_of, "remembered": remembered})
    order = bits.argsort(descending=True, stable=True).tolist()
    return {
        "heldout": int(held.sum()),
        "rate": rate,
        "generations": painted.shape[1],
        "by_repetition": by_repetition,
        "below_unique": _smaller(errors, count > 1, count == 1, seed=seed),
        "below_heldout": _smaller(errors, count > 1, held, seed=seed),
        "unique_below_heldout": _smaller(errors, count == 1, held, seed=seed),
        "each": [
            {
                "key": keys[row],
                "repeats": int(count[row]),
                "level": float(levels[row]),
                "answer": float(painted[row].double().mean()),
                "error": float(errors[row]),
                "bits": float(bits[row]),
                "p_value": float(chance[row]),
            }
            for row in order
        ],
    }


def _smaller(errors: Tensor, some: Tensor, others: Tensor, *, seed: int) -> dict[str, Any] | None:
    """Probability that an error of some is smaller than one of the others, with its interval."""
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
