"""Steps without training of the denoiser: `training_step` returned None, or trained another network only."""

from __future__ import annotations

from memtrain.errors import ProbeError
from memtrain.monitoring.turn import Turn

UNSEEN_AT_MOST = 8
"""Number of batches at the start of a run that may train nothing. With more of them, the denoiser is never found."""


class SkippedSteps:
    """Counts skipped steps; a skipped step is no visit, but counts as a batch."""

    def __init__(self) -> None:
        self._seen, self._unseen = False, 0

    def skipped(self, turn: Turn) -> bool:
        """Return whether this batch is skipped."""
        if not turn.trained_nothing(seen_before=self._seen):
            self._seen = True
            return False
        self._unseen += 1
        # In other cases the batch counts as a visit, and the probe raises an error.
        return self._seen or self._unseen < UNSEEN_AT_MOST

    def require_some_trained(self, batches: int) -> None:
        """Refuse a run that trained on no batch.

        Raises:
            ProbeError: if it trained on none.
        """
        if batches and self._unseen == batches:
            raise ProbeError(
                f"No batch was trained on: training_step skipped all {self._unseen}, so nothing was watched",
                expected="a loss for some batches",
                remedy="return a loss from training_step instead of None",
            )
