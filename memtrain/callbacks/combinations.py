"""Which callbacks cannot share a run: what would fail late, or silently do nothing, is refused before training."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback

from memtrain.callbacks.mitigation import Mitigation
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.errors import ConfigurationError


def refuse_combinations(callbacks: Sequence[Callback], monitor: Callback) -> None:
    """Refuse an order of callbacks in which an update is lost, and mitigations that undo each other.

    Args:
        callbacks: the trainer's, in their order.
        monitor: the one among them.

    Raises:
        ConfigurationError: if one of ours takes stock at the end of training before the monitor has brought it up to
            date; or if a mitigation acts on flagged samples alone, and another takes these out of the batches.
    """
    _refuse_order(callbacks, monitor)
    mitigations = [callback for callback in callbacks if isinstance(callback, Mitigation)]
    _refuse_idle(mitigations)


def _refuse_order(callbacks: Sequence[Callback], monitor: Callback) -> None:
    for callback in callbacks[: callbacks.index(monitor)]:
        acts = type(callback).on_train_end is not Callback.on_train_end
        if acts and isinstance(callback, Mitigation | PipelineExport):
            name = type(callback).__name__
            raise ConfigurationError(
                f"{name} stands before {type(monitor).__name__} among the callbacks, so at the end of training it "
                "would act without the monitor's last update",
                expected=f"the monitor before {name}",
                remedy="put the monitor first",
            )


def _refuse_idle(mitigations: Sequence[Mitigation]) -> None:
    changing = [type(mitigation).__name__ for mitigation in mitigations if mitigation.changes_samples]
    idle = [type(mitigation).__name__ for mitigation in mitigations if mitigation.flagged_only]
    if changing and idle:
        raise ConfigurationError(
            f"{idle[0]} acts on flagged samples only, which {changing[0]} takes out of the batches",
            expected=f"one of both, or {idle[0]} on all samples",
            remedy=f"leave {changing[0]} or {idle[0]} out, or change the settings of {idle[0]}, where it has such, to "
            "`samples: all` (and `neurons: 0`)",
        )
