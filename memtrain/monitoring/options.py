"""The options of the engine, the same in Lightning's monitor and in the guard of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal

from memtrain.errors import ConfigurationError

COMBINED = "combined"
"""Flag by all signals together, along the direction in which the run's canaries stand out."""


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """Settings that rarely need a change.

    Attributes:
        maximum_timestep: timestep from which on visits are recorded but are no evidence.
        evidence_window: number of visits that a sample's evidence remembers.
        reference_timesteps: timesteps of the base model's profile.
        reference_draws: number of noises per timestep and sample.
        calibrate_every: number of batches between updates with new evidence and measured held-out samples.
        heldout_batch: number of held-out samples measured in an update, per process.
        seed: seed of the noise for profile and held-out samples.
        heldout_share: share of the keys that are held out by weight (:mod:`memtrain.monitoring.heldout_keys`).
        online_families: whether to find equal pictures and captions during training
            (:mod:`memtrain.monitoring.online_watch`). `auto` does so for data without a scan.

    Raises:
        ConfigurationError: if with one of them nothing could ever be flagged, or measured.
    """

    maximum_timestep: int = 800
    evidence_window: int = 12
    reference_timesteps: tuple[int, ...] = (100, 300, 500, 700)
    reference_draws: int = 2
    calibrate_every: int = 8
    heldout_batch: int = 8
    seed: int = 0
    heldout_share: float = 0.0
    online_families: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _require_numbers(self)
        _require(0 <= self.heldout_share <= 0.5, "heldout_share", self.heldout_share, "from 0 to 0.5")
        for name in ("evidence_window", "maximum_timestep", "reference_draws", "calibrate_every", "heldout_batch"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        found = self.online_families
        _require(isinstance(found, bool) or found == "auto", "online_families", repr(found), "true, false or 'auto'")
        steps = self.reference_timesteps
        distinct = len(steps) > 0 and len(set(steps)) == len(steps) and min(steps) >= 0
        _require(distinct, "reference_timesteps", steps, "one or more different timesteps, none below 0")


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """The main options of a run; :class:`memtrain.callbacks.monitor.MemorizationMonitor` describes each of them.

    Raises:
        ConfigurationError: if with one of them nothing could ever be flagged, or measured.
    """

    flag_by: str = "denoising_loss"
    false_positive_rate: float = 0.01
    minimum_visits: int = 6
    reference: bool | Literal["paired", "first_visit"] = True
    reference_folder: str | None = None
    paired_every: int = 4
    sites: str | None = None
    denoiser: str | None = None
    key_field: str | None = None
    settings: WatchSettings = field(default_factory=WatchSettings)

    def __post_init__(self) -> None:
        _require_numbers(self)
        found = self.reference
        known = isinstance(found, bool) or found in ("paired", "first_visit")
        _require(known, "reference", repr(found), "true, false, 'paired' or 'first_visit'")
        # More visits than the evidence remembers may be required, because they are counted beyond it.
        for name in ("minimum_visits", "paired_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        rate = self.false_positive_rate
        _require(0 < rate <= 0.5, "false_positive_rate", rate, "above 0, at most 0.5")

    @property
    def profiled(self) -> bool:
        """Whether values are compared with a profile of each sample, from before training or from its first visit."""
        return self.reference is True or self.reference == "first_visit"


def named_options(given: Mapping[str, Any]) -> WatchOptions:
    """Make options and settings from their names.

    Raises:
        ConfigurationError: if a name is unknown.
    """
    rare = {field.name for field in fields(WatchSettings)}
    known = {field.name for field in fields(WatchOptions)} - {"settings"} | rare
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigurationError(
            f"There is no option {unknown[0]!r}", expected=f"one of {sorted(known)}", remedy="use one of these names"
        )
    settings = WatchSettings(**{name: value for name, value in given.items() if name in rare})
    return WatchOptions(**{name: value for name, value in given.items() if name not in rare}, settings=settings)


def _require_numbers(options: WatchOptions | WatchSettings) -> None:
    for one in fields(options):
        if isinstance(one.default, int | float) and not isinstance(one.default, bool):
            found = getattr(options, one.name)
            fine = isinstance(found, Real) and (isinstance(one.default, float) or isinstance(found, Integral))
            number = "a number" if isinstance(one.default, float) else "a whole number"
            _require(fine and not isinstance(found, bool), one.name, repr(found), number)


def _require(fine: bool, name: str, found: object, expected: str) -> None:
    if not fine:
        raise ConfigurationError(f"{name}={found}", expected=expected, remedy=f"change {name}")
