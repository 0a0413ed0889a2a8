"""The verdict on the losses of some batches: whether each sample's loss is known, and the remedy if it is not.

The rows that :mod:`memtrain.monitoring.loss_check` makes from batches are judged together for all processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TOLERANCE = 0.02
"""Largest relative difference from rounding. Half precision stays well below it."""

UNSEEN = 0.05
"""Share of an image without a gradient, above which the image counts as masked."""

HAND_OVER = 'return {"loss": loss, "sample_loss": (B,) each sample\'s unweighted loss, detached} from training_step'
HAND_OVER += " (in a loop, hand prediction and target to guard.loss)"
DECLARE = "declare the factor of each sample's loss, also a constant, as loss_weight(timesteps) -> (B,) or "
DECLARE += (
    "loss_weight(timesteps, batch) -> (B,) on the module (in a loop, as loss_weight or loss_scale of guard.watch)"
)
OTHERS = "or measure other `signals` than DenoisingLoss"
EXPECTED = "a loss that is the batch mean of squared errors at the denoiser's output"

# Eight numbers of a batch: 0 kind, 1 finite, 2 ratio, 3 apart, 4 flat, 5 without gradient, 6 masked, 7 broken
READ, GIVEN = 0.0, 1.0


def verdict(rows: Sequence[tuple[float, ...]], readers: Sequence[str]) -> tuple[str, str, str] | None:
    """Judge batches.

    Args:
        rows: the eight numbers of each batch.
        readers: names of mitigations and settings that need losses read from the gradient, even if they are handed
            over.

    Returns:
        The problem, the expected state and the remedy; None if every batch is right.
    """
    given = [row for row in rows if row[0] == GIVEN]
    if any(row[7] for row in given):
        found = "is negative" if any(row[7] == 1 for row in given) else "is the same number for every sample of a batch"
        return (
            f"The sample_loss from training_step {found}",
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
    """Judge losses that are handed over, if other methods read the gradient."""
    low, high = min(row[3] for row in rows), max(row[3] for row in rows)
    remedy = f"remove {' and '.join(readers)} (SampleSkipping uses flags, for which sample_loss is enough)"
    if readers[-1].startswith("`reference"):
        remedy = (
            "return `target`, the (B, ...) target of the denoiser's output, together with sample_loss, or set "
            "`reference: true` or `reference: false`"
        ) + ("" if len(readers) == 1 else f", and remove {' and '.join(readers[:-1])}")
    return (
        f"{' and '.join(readers)} cannot use the sample_loss from training_step, and the losses read from the gradient "
        f"differ from it by {100 * low:.3g} to {100 * high:.3g} %",
        EXPECTED,
        f"{remedy}; or {DECLARE}",
    )


def _unreadable(rows: Sequence[tuple[float, ...]], total: int) -> tuple[str, str, str] | None:
    """Judge losses read from the gradient, if a batch shows that they are wrong."""
    if any(row[4] for row in rows):
        return (
            "The elements of the gradient at the denoiser's output all have one size, so the loss is an absolute "
            "error (L1), and its size cannot be read from the gradient",
            EXPECTED,
            f"{HAND_OVER}; {OTHERS}",
        )
    silent = int(sum(row[5] for row in rows))
    if silent:
        return (
            f"No gradient reached {silent} samples. The loss leaves them out, and they would look memorized",
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
            f"The losses read from the gradient do not agree with the loss. In {len(wrong)} of {total} compared "
            f"batches, their mean is {_range(wrong)} the loss that was differentiated",
            EXPECTED,
            f"{DECLARE}; or {HAND_OVER}, if it has further terms, masks or another criterion; {OTHERS}",
        )
    return None


def _range(ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    if high - low <= 0.02 * high:
        return f"{(low + high) / 2:.3g} times"
    return f"{low:.3g} to {high:.3g} times"
