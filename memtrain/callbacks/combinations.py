"""Which callbacks cannot share a run: what would fail late, or silently do nothing, is refused before training."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback

from memtrain.callbacks.mitigation import Mitigation
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.errors import ConfigurationError
from memtrain.signals.base import Signal


def refuse_combinations(callbacks: Sequence[Callback], monitor: Callback, *, signals: Sequence[Signal] = ()) -> None:
    """Refuse an order of callbacks in which an update is lost, and methods that undo each other.

    Args:
        callbacks: the trainer's, in their order.
        monitor: the one among them.
        signals: that it measures.

    Raises:
        ConfigurationError: if one of ours takes stock at the end of training before the monitor has brought it up to
            date; if a mitigation acts on flagged samples alone, and another takes these out of the batches; if one goes
            by captions that another changes; or if the prediction under the empty caption is wanted, and would be that
            of another network.
    """
    _refuse_order(callbacks, monitor)
    mitigations = [callback for callback in callbacks if isinstance(callback, Mitigation)]
    _refuse_idle(mitigations)
    _refuse_other_captions(mitigations)
    _refuse_two_networks(mitigations, signals)


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


def _refuse_other_captions(mitigations: Sequence[Mitigation]) -> None:
    changing = [type(mitigation).__name__ for mitigation in mitigations if mitigation.changes_captions]
    reading = [type(mitigation).__name__ for mitigation in mitigations if mitigation.reads_captions]
    if changing and reading:
        raise ConfigurationError(
            f"{reading[0]} goes by a sample's own caption, and {changing[0]} trains on others",
            expected="one of both",
            remedy=f"leave {reading[0]} or {changing[0]} out",
        )


def _refuse_two_networks(mitigations: Sequence[Mitigation], signals: Sequence[Signal]) -> None:
    wanted_by = [type(signal).__name__ for signal in signals if signal.unconditional_every]
    wanted_by += [type(mitigation).__name__ for mitigation in mitigations if mitigation.needs_unconditional]
    editing = [type(mitigation).__name__ for mitigation in mitigations if mitigation.edits_training]
    if wanted_by and editing:
        raise ConfigurationError(
            f"{wanted_by[0]} compares a training prediction with one under the empty caption, and {editing[0]} changes "
            "the network for the first only",
            expected="both predictions of one network",
            remedy=f"leave {wanted_by[0]} or {editing[0]} out",
        )
