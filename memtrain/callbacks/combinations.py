"""Which callbacks cannot share a run: what would fail late, or silently do nothing, is refused before training."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback

from memtrain.callbacks.mitigation import Mitigation
from memtrain.errors import ConfigurationError


def refuse_combinations(callbacks: Sequence[Callback]) -> None:
    """Refuse mitigations of a run that undo each other.

    Args:
        callbacks: the trainer's, in their order.

    Raises:
        ConfigurationError: if a mitigation acts on flagged samples alone, and another takes these out of the batches.
    """
    mitigations = [callback for callback in callbacks if isinstance(callback, Mitigation)]
    changing = [type(mitigation).__name__ for mitigation in mitigations if mitigation.changes_samples]
    idle = [type(mitigation).__name__ for mitigation in mitigations if mitigation.flagged_only]
    if changing and idle:
        raise ConfigurationError(
            f"{idle[0]} acts on flagged samples only, which {changing[0]} takes out of the batches",
            expected=f"one of both, or {idle[0]} on all samples",
            remedy=f"leave {changing[0]} or {idle[0]} out, or change the settings of {idle[0]}, where it has such, to "
            "`samples: all` (and `neurons: 0`)",
        )
