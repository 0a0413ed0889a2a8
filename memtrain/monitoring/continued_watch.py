"""The settings that the evidence of a run depends on, and a check of a saved state against them."""

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
    """Return the settings that the evidence of a run depends on, in plain types."""
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
"""Settings whose change is logged and not refused."""


def check_continued(saved: Mapping[str, Any] | None, now: Mapping[str, Any], *, host: Host) -> None:
    """Refuse a saved state whose evidence does not fit this run, and log other differences.

    Args:
        saved: the settings of the saved state; None for a state of an earlier version.
        now: the settings of this run.
        host: the host of this run.

    Raises:
        ConfigurationError: if the evidence does not fit; the message names the difference.
    """
    require_same_watch(saved, {name: value for name, value in now.items() if name not in MAY_DIFFER})
    for note in check_settings(saved or {}, {name: plain(now[name]) for name in MAY_DIFFER}):
        if host.rank == 0:
            log.warning("Continued with other settings: %s", note)


def require_state(host: Host, options: WatchOptions) -> None:
    """Refuse to use the trained weights of a checkpoint as the base model.

    Raises:
        ConfigurationError: if a checkpoint of a run without a monitor was loaded, and its weights would be measured.
    """
    if host.checkpoint is None or not host.restored or not options.profiled:
        return
    raise ConfigurationError(
        f"The checkpoint {host.checkpoint} holds no state of MemorizationMonitor, and its trained weights cannot serve "
        "as the base model of `reference`",
        expected="a checkpoint of a run with the monitor",
        remedy="set `reference: false` on the monitor, which compares with the other samples of this run, or begin a "
        "new run with the monitor",
    )
