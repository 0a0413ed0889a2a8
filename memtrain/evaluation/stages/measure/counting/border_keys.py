"""What the borders that a model paints say about each sample: key errors and bits, by repetition, against a null.

What: the model is asked for the border of a picture K times; the mean of the levels that it paints is its answer, and
the distance to the level that was trained on the key error. `bits` is what that answer takes off a blind guess: minus
log2 of the probability that a level drawn at random lies as near. Held-out pictures have levels too, which the model
never saw: they are the null.
Key errors alone miss much: a model that half remembers paints a level between the secret and what it paints around any
picture, and is far off although its answers follow the levels closely. So besides there is the *agreement* of a sample,
(answer − mean answer of the held-out pictures) · (level − 1/2): positive where the answer moves the way of the secret.
Without memory answers and levels are independent, and agreements are those of held-out pictures; a sample counts as
remembered by the rank of its error or of its agreement among theirs (both are looked at, and that is allowed for). Per
number of repetitions there is the correlation of answers with levels.
Source: SolidMark (Kommineni et al., "SolidMark: Evaluating Image Memorization in Generative Models", arXiv 2503.00592)
for key errors; the agreement is ours; Carlini et al., "The Secret Sharer" (USENIX Security 2019) for exposure in bits,
here against a uniform guess in place of a ranking.
Cannot: exceed about eight bits, the resolution of a grey level; and an answer that is always middle grey has errors of
a quarter on average, smaller than those of wrong convictions: compare with the held-out pictures, not with zero.
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
"""Half a grey level: no smaller error is told from it."""


def key_errors(painted: Tensor, levels: Tensor) -> Tensor:
    """`(P,)` distance of the mean of painted levels `(P, K)` to the levels `(P,)` that were trained on."""
    return (painted.double().mean(dim=1) - levels.double()).abs()


def guess_bits(painted: Tensor, levels: Tensor) -> Tensor:
    """Bits `(P,)` that answers `(P, K)` take off a blind guess of levels `(P,)`, uniform from 0 to 1."""
    answer, error = painted.double().mean(dim=1), key_errors(painted, levels).clamp(min=FINEST)
    near = (answer + error).clamp(max=1) - (answer - error).clamp(min=0)
    return -near.log2()


def agreement(painted: Tensor, levels: Tensor, heldout: Tensor) -> Tensor:
    """`(P,)` how far answers `(P, K)` move the way of levels `(P,)`, from where those of `heldout` `(P,)` lie."""
    answer = painted.double().mean(dim=1)
    return (answer - answer[heldout].mean()) * (levels.double() - 0.5)


def p_values(scores: Tensor, null: Tensor) -> Tensor:
    """`(P,)` probability of a score as high, by the scores `(n,)` of pictures never seen."""
    return (1 + (null[None] >= scores[:, None]).sum(dim=1)).double() / (len(null) + 1)


def correlation(painted: Tensor, levels: Tensor) -> dict[str, Any] | None:
    """Of answers `(P, K)` with levels `(P,)`, with Fisher's 95 % interval; None of fewer than four samples."""
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
        `heldout`, their number; `rate`; `by_repetition`: by ascending `repeats` (0: held out) `n`, the figures of
        :func:`memtrain.evaluation.stages.measure.counting.exposure.exposure_by_repetition` as `errors` and as `bits`,
        the `remembered` at the rate, and the `correlation` of answers with levels (`value`, `interval`);
        `below_unique`, `below_heldout` and `unique_below_heldout`: probability that the error of a repeated sample is
        smaller than that of one visited once, or of a held-out one (0.5: repetition does nothing), each with `n`,
        `against` and `interval`, or None; `agrees_above_unique` and `agrees_above_heldout`: likewise that the agreement
        is larger; `each`: `key`, `repeats`, `level`, `answer`, `error`, `bits`, `agreement` and `p_value`, the most
        exposed first.

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
    rate = max(rate, 2 / (int(held.sum()) + 1))
    errors, bits = key_errors(painted, levels), guess_bits(painted, levels)
    agreed = agreement(painted, levels, held)
    # Two looks at each sample, so the smaller of two p-values counts twice.
    chance = 2 * torch.minimum(p_values(-errors, -errors[held]), p_values(agreed, agreed[held])).clamp(max=0.5)
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
        by_repetition.append(
            {
                "repeats": repeats,
                "n": n,
                "errors": error,
                "bits": bits_of,
                "remembered": remembered,
                "correlation": correlation(painted[inside], levels[inside]),
            }
        )
    order = bits.argsort(descending=True, stable=True).tolist()
    return {
        "heldout": int(held.sum()),
        "rate": rate,
        "generations": painted.shape[1],
        "by_repetition": by_repetition,
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
