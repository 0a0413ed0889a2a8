"""Combinations of methods that would fail late or silently do nothing. They are refused before training."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.monitoring.mitigation import Mitigation
from memtrain.signals.base import Signal


def refuse_combinations(mitigations: Sequence[Mitigation], *, signals: Sequence[Signal], profiled: bool) -> None:
    """Refuse methods that undo each other, and mitigations whose needs are not met.

    Args:
        mitigations: the mitigations of the run.
        signals: the signals that the run measures.
        profiled: whether the base model is measured before training (`reference: true`).

    Raises:
        ConfigurationError: if a mitigation acts on flagged samples only and another one takes them out of the batches.
            If one depends on captions that another one changes. If the prediction under the empty caption is needed but
            would come from another network. If one compares with the base model in a way that is not measured.
    """
    _refuse_idle(mitigations)
    _refuse_other_captions(mitigations)
    _refuse_two_networks(mitigations, signals)
    _refuse_unprofiled(mitigations, signals, profiled=profiled)


def require_kind(found: Any, kind: type, *, called: str) -> None:
    """Refuse a value that is not a list of objects of a kind.

    Raises:
        ConfigurationError: if the value is a single object, a class or a name.
    """
    wrong = [] if isinstance(found, list | tuple) else [found]
    wrong = wrong or [one for one in found if not isinstance(one, kind)]
    if wrong:
        shown = f"the class {wrong[0].__name__}" if isinstance(wrong[0], type) else f"a {type(wrong[0]).__name__}"
        raise ConfigurationError(
            f"`{called}` holds {shown}" if isinstance(found, list | tuple) else f"`{called}` is {shown}",
            expected=f"a list of objects of memtrain's {kind.__name__}",
            remedy=f"write for instance {called}=[One(), Another()]",
        )


def require_same_watch(saved: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Refuse a saved state whose evidence does not fit this run; None, from an earlier version, is accepted.

    Raises:
        ConfigurationError: if the two differ; the message names the difference.
    """
    different = [name for name in now if name in (saved or {}) and saved[name] != now[name]] if saved else []
    if not different:
        return
    name = different[0]
    assert saved is not None
    if name == "columns":
        found = f"of {len(saved[name])} values a visit, this run measures {len(now[name])} or others"
    elif name == "families":
        found = f"{_counted(saved[name])}, this run counts {'single files' if now[name] is None else 'other families'}"
    else:
        found = f"with {name}={saved[name]!r}, this run has {now[name]!r}"
    raise ConfigurationError(
        f"The saved state was made {found}",
        expected="the same model, data, signals, sites and options as in the run that is resumed",
        remedy="restore the former settings, or begin a new run without the saved state of the monitor",
    )


def _counted(families: Any) -> str:
    return "by single files" if families is None else "by families of pictures and captions"


def require_changeable(batch: Any, mitigation: Mitigation) -> None:
    """Refuse batches that a mitigation cannot change.

    Raises:
        ConfigurationError: if the mitigation puts other samples or captions into batches, and the batch is no dict.
    """
    effects = mitigation.effects()
    if (effects.changes_samples or effects.changes_captions) and not isinstance(batch, MutableMapping):
        raise ConfigurationError(
            f"{type(mitigation).__name__} changes fields of the batch, but the batch is a {type(batch).__name__} "
            "without names of fields",
            expected="batches that are dicts",
            remedy="return dicts from the collate function, or use SampleSkipping, which does not change batches",
        )


def refuse_unwatched(mitigations: Sequence[Mitigation]) -> None:
    """Refuse mitigations that must see a batch before its forward, in a loop that shows it later.

    Raises:
        ConfigurationError: if there is one; the message names the first.
    """
    changing = _named(mitigations, "changes_batch") + _named(mitigations, "changes_samples")
    if changing:
        raise ConfigurationError(
            f"{changing[0]} changes batches, and must see each batch before the forward",
            expected="`with guard.watch(batch):` around forward, loss and backward",
            remedy=f"add `with guard.watch(batch):`, or remove {changing[0]}",
        )


def _named(mitigations: Sequence[Mitigation], effect: str) -> list[str]:
    return [type(mitigation).__name__ for mitigation in mitigations if getattr(mitigation.effects(), effect)]


def _refuse_idle(mitigations: Sequence[Mitigation]) -> None:
    changing, idle = _named(mitigations, "changes_samples"), _named(mitigations, "flagged_only")
    if changing and idle:
        raise ConfigurationError(
            f"{idle[0]} acts on flagged samples only, but {changing[0]} takes them out of the batches",
            expected=f"one of both, or {idle[0]} on all samples",
            remedy=f"remove {changing[0]} or {idle[0]}, or set `samples: all` (and `neurons: 0`) on {idle[0]}, if it "
            "has these settings",
        )


def _refuse_other_captions(mitigations: Sequence[Mitigation]) -> None:
    changing, reading = _named(mitigations, "changes_captions"), _named(mitigations, "reads_captions")
    if changing and reading:
        raise ConfigurationError(
            f"{reading[0]} needs the sample's own caption, but {changing[0]} trains on other captions",
            expected="one of the two",
            remedy=f"remove {reading[0]} or {changing[0]}",
        )


def _refuse_two_networks(mitigations: Sequence[Mitigation], signals: Sequence[Signal]) -> None:
    wanted_by = [type(signal).__name__ for signal in signals if signal.unconditional_every]
    wanted_by += [type(mitigation).__name__ for mitigation in mitigations if mitigation.needs().unconditional]
    editing = _named(mitigations, "edits_training")
    if wanted_by and editing:
        raise ConfigurationError(
            f"{wanted_by[0]} compares a training prediction with one under the empty caption, but {editing[0]} "
            "changes the network for the first only",
            expected="both predictions from one network",
            remedy=f"remove {wanted_by[0]} or {editing[0]}",
        )


def _refuse_unprofiled(mitigations: Sequence[Mitigation], signals: Sequence[Signal], *, profiled: bool) -> None:
    measured = {signal.name for signal in signals}
    for mitigation in mitigations:
        name, wanted = type(mitigation).__name__, mitigation.needs().base_profile
        if wanted and not profiled:
            raise ConfigurationError(
                f"{name} compares with the base model's profile, but the monitor measures no profile",
                expected="`reference: true`",
                remedy=f"set `reference: true` on the monitor, or remove {name}",
            )
        missing = sorted(set(wanted) - measured)
        if missing:
            raise ConfigurationError(
                f"{name} needs the signal {missing}, which the monitor does not measure",
                expected="that signal among the monitor's `signals`",
                remedy=f"add it to `signals`, or remove {name}",
            )
