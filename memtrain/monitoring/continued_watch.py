"""What the evidence of a run rests on, and whether a saved state's goes on in the run that takes it up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.files.resume_contract import check_settings, plain
from memtrain.monitoring.combinations import require_same_watch
from memtrain.monitoring.family_index import family_index, index_name
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.options import WatchOptions

log = logging.getLogger(__name__)


def watch_of(
    host: Host, options: WatchOptions, *, columns: Sequence[str], mitigations: Sequence[Mitigation]
) -> dict[str, Any]:
    """What the evidence of a run rests on; plain types."""
    settings = options.settings
    return {
        "columns": list(columns),
        "families": index_name(family_index(host)),
        "reference": options.reference,
        "flag_by": options.flag_by,
        "heldout_share": settings.heldout_share,
        "evidence_window": settings.evidence_window,
        "reference_timesteps": list(settings.reference_timesteps),
        "false_positive_rate": options.false_positive_rate,
        "minimum_visits": options.minimum_visits,
        "mitigations": sorted(type(mitigation).__name__ for mitigation in mitigations),
    }


MAY_DIFFER = ("false_positive_rate", "minimum_visits", "mitigations")
"""What is said, and not refused, where it is another than in the saved state."""


def check_continued(saved: Mapping[str, Any] | None, now: Mapping[str, Any], *, host: Host) -> None:
    """Refuse a saved state whose evidence does not go on in this run, and log what differs from here on.

    Args:
        saved: what the evidence of the saved state rests on; None for that of an earlier version.
        now: what this run's does.
        host: the surroundings of this run.

    Raises:
        ConfigurationError: naming what differs.
    """
    require_same_watch(saved, {name: value for name, value in now.items() if name not in MAY_DIFFER})
    for note in check_settings(saved or {}, {name: plain(now[name]) for name in MAY_DIFFER}):
        if host.rank == 0:
            log.warning("Continued with other settings: %s", note)


def require_state(host: Host, options: WatchOptions) -> None:
    """Refuse to take the weights of a checkpoint, which are trained, for the base model.

    Raises:
        ConfigurationError: if a checkpoint of a run without a monitor was loaded, and its weights would be measured.
    """
    if host.checkpoint is None or not host.restored or not options.profiled:
        return
    raise ConfigurationError(
        f"The checkpoint {host.checkpoint} holds no state of MemorizationMonitor, whose `reference` measures the "
        "base model, and the checkpoint's weights are trained already",
        expected="a checkpoint of a run with the monitor",
        remedy="set the monitor's `reference: false`, which compares with the other samples of this run; or begin a "
        "new run with the monitor",
    )
