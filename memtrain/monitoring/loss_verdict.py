"""What the losses of some batches say: whether each sample's loss is known, and if not, what the user can do.

The rows that :mod:`memtrain.monitoring.loss_check` makes of batches are judged together, those of all processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TOLERANCE = 0.02
"""Relative difference that is put down to rounding; half precision stays well below it."""

UNSEEN = 0.05
"""Share of an image without any gradient above which it is masked."""

HAND_OVER = 'return {"loss": loss, "sample_loss": (B,) each sample\'s unweighted loss, detached} from training_step'
HAND_OVER += " (in a loop, hand prediction and target to guard.loss)"
DECLARE = "declare what each sample's loss is multiplied by, a constant too, as loss_weight(timesteps) -> (B,) or "
DECLARE += (
    "loss_weight(timesteps, batch) -> (B,) on the module (in a loop, as loss_weight or loss_scale of guard.watch)"
)
OTHERS = "or measure other `signals` than DenoisingLoss"
EXPECTED = "a loss that is the batch mean of squared errors at the denoiser's output"

# What a batch showed, eight numbers: 0 kind, 1 finite, 2 ratio, 3 apart, 4 flat, 5 without gradient, 6 masked, 7 broken
READ, GIVEN = 0.0, 1.0


def verdict(rows: Sequence[tuple[float, ...]], readers: Sequence[str]) -> tuple[str, str, str] | None:
    """Judge batches.

    Args:
        rows: eight numbers of each batch.
        readers: mitigations and settings that need losses read from the gradient, even where they are handed over.

    Returns:
        What was found, what is expected and what helps; None if every batch is as it should be.
    """
    given = [row for row in rows if row[0] == GIVEN]
    if any(row[7] for row in given):
        found = "is negative" if any(row[7] == 1 for row in given) else "is the same number for every sample of a batch"
        return (
            f"sample_loss, as training_step returns it, {found}",
            "each sample's own loss, in the order of the batch",
            "return for instance (prediction - target).square().flatten(1).mean(1).detach()",
        )
    read = [row for row in rows if row[0] == READ and row[1] and not math.isinf(row[2])]
    trusted = [row for row in read if row[3] <= TOLERANCE]
    doubted = [row for row in read if not row[3] <= TOLERANCE]
    handed = [row for row in doubted if math.isfinite(row[3])]
    if handed and readers:
        return _cannot_wait(handed, readers)
    return _unreadable(doubted, len(trusted) + len(doubted))


def _cannot_wait(rows: Sequence[tuple[float, ...]], readers: Sequence[str]) -> tuple[str, str, str]:
    """Losses are handed over, but somebody needs more than that."""
    low, high = min(row[3] for row in rows), max(row[3] for row in rows)
    remedy = f"leave {' and '.join(readers)} out (SampleSkipping goes by flags, for which sample_loss is enough)"
    if readers[-1].startswith("`reference"):
        remedy = (
            "return `target`, the (B, ...) tensor that the denoiser's output is compared with, beside sample_loss, or "
            "set `reference: true` or `reference: false`"
        ) + ("" if len(readers) == 1 else f"; and leave {' and '.join(readers[:-1])} out")
    return (
        f"{' and '.join(readers)} cannot go by the sample_loss that training_step returns, and the losses read from "
        f"the gradient differ from it by {100 * low:.3g} to {100 * high:.3g} %",
        EXPECTED,
        f"{remedy}; or {DECLARE}",
    )


def _unreadable(rows: Sequence[tuple[float, ...]], total: int) -> tuple[str, str, str] | None:
    """Losses were read, and one batch says that they are not the loss."""
    if any(row[4] for row in rows):
        return (
            "The elements of the gradient at the denoiser's output are all of one size, so the loss is an absolute "
            "error (L1), whose gradient does not tell how large it is",
            EXPECTED,
            f"{HAND_OVER}; {OTHERS}",
        )
    silent = int(sum(row[5] for row in rows))
    if silent:
        return (
            f"No gradient at all reached {silent} samples: the loss leaves them out, and they would look memorized",
            EXPECTED,
            f"give them a weight of 0 in loss_weight(timesteps, batch) -> (B,) on the module; or {HAND_OVER}; {OTHERS}",
        )
    masked = max((row[6] for row in rows), default=0.0)
    if masked > UNSEEN:
        return (
            f"No gradient reached {100 * masked:.3g} % of an image, so the loss is masked",
            EXPECTED,
            f"{HAND_OVER}; {OTHERS}",
        )
    wrong = [row[2] for row in rows if abs(row[2] - 1) > TOLERANCE]
    if wrong:
        return (
            f"The losses read from the gradient are not those of the loss: in {len(wrong)} of {total} batches "
            f"compared, their mean is {_range(wrong)} the loss that was differentiated",
            EXPECTED,
            f"{DECLARE}; or {HAND_OVER}, where it has further terms, masks or another criterion; {OTHERS}",
        )
    return None


def _range(ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    if high - low <= 0.02 * high:
        return f"{(low + high) / 2:.3g} times"
    return f"{low:.3g} to {high:.3g} times"
