"""The index of families of a run, which says which samples show one picture, and the counts that use it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Container
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.evidence.levels import COMMON, Levels
from memtrain.families.table import Families, FamilyIndex
from memtrain.monitoring.data_protocol import by_key, known_samples
from memtrain.monitoring.host import Host

log = logging.getLogger(__name__)


def family_index(host: Host) -> FamilyIndex | None:
    """Return the index from the host or from the scan of its data; None if there was no scan."""
    return host.families


def given_index(given: FamilyIndex | str | Path | None) -> FamilyIndex | None:
    """Return an index, or read it from a `families.parquet`.

    Raises:
        ConfigurationError: if the value is no index and no path.
        RecordError: if the file is no such table.
    """
    if isinstance(given, str | Path):
        return Families.read(given)
    if given is None or (hasattr(given, "picture") and hasattr(given, "caption")):
        return given
    raise ConfigurationError(
        f"families is a {type(given).__name__}",
        expected="a path to families.parquet, or memtrain.families.table.Families",
        remedy="run memtrain scan on the images, and pass families=<path of its table>",
    )


def index_name(families: FamilyIndex | None) -> str | None:
    """Return the name of an index in a saved state; None if files are counted."""
    if not isinstance(families, Families):
        return None if families is None else type(families).__name__
    shared = [sorted(part.items()) for part in (families.pictures, families.captions)]
    return hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:16] if any(shared) else None


class Apart(Container[str]):
    """Keys that are not trained on: the keys of held-out samples, and of samples held out by weight.

    Args:
        host: the host, whose data know the held-out samples.
        by_weight: the samples held out by weight.
    """

    def __init__(self, host: Host, by_weight: Container[str]) -> None:
        self.known = frozenset(sample.key for sample in known_samples(host.data, "heldout"))
        self.by_weight = by_weight

    def __contains__(self, key: object) -> bool:
        return key in self.known or key in self.by_weight


def canaries(data: Any) -> set[str]:
    """Return the keys of the canaries in the data."""
    return {key for key, group in by_key(data, "groups").items() if group == "canary"}


def training_keys(host: Host) -> Collection[str]:
    """Return the keys of all training samples, each once; empty if unknown."""
    return by_key(host.data, "visits_per_epoch").keys() or {s.key for s in known_samples(host.data, "train")}


def picture_count(host: Host, apart: Container[str]) -> int | None:
    """Return the number of training pictures; None if unknown."""
    families, keys = family_index(host), training_keys(host)
    pictures = {key if families is None else families.picture(key) for key in keys if key not in apart}
    return len(pictures) or None


def report_common(host: Host, levels: Levels) -> None:
    """Log the captions that are no level, because too many pictures share them, if this is known yet."""
    families = family_index(host)
    if families is None or levels.pictures is None:
        return
    captions = {sample.key: sample.caption for sample in known_samples(host.data, "train")}
    for key in training_keys(host):
        levels.name("caption", key)
    if levels.common and host.rank == 0:
        shown = [captions.get(name, name) for name in sorted(levels.common)]
        log.warning(
            "%d captions are shared by more than %g %% of the pictures, so they flag no pictures. The first is %r",
            len(shown),
            100 * COMMON,
            shown[0],
        )
