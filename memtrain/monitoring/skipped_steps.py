"""Steps that train nothing on their batch: `training_step` returned None, or trained another network alone."""

from __future__ import annotations

from memtrain.errors import ProbeError
from memtrain.monitoring.turn import Turn

UNSEEN_AT_MOST = 8
"""Batches at the start of a run that may train nothing; more of them, and the denoiser is looked for in vain."""


class SkippedSteps:
    """Counts them; a skipped step is no visit, but counts as a batch."""

    def __init__(self) -> None:
        self._seen, self._unseen = False, 0

    def skipped(self, turn: Turn) -> bool:
        """Whether this batch is to be passed over."""
        if not turn.trained_nothing(seen_before=self._seen):
            self._seen = True
            return False
        self._unseen += 1
        # Otherwise as if it had been a visit: the probe says what is missing.
        return self._seen or self._unseen < UNSEEN_AT_MOST

    def require_some_trained(self, batches: int) -> None:
        """Refuse a run that trained on none of its batches.

        Raises:
            ProbeError: if it did.
        """
        if batches and self._unseen == batches:
            raise ProbeError(
                f"No batch was trained on: training_step skipped all {self._unseen}, so nothing was watched",
                expected="a loss for some batches",
                remedy="look why training_step returns None",
            )
