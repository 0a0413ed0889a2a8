"""Measures of copying, found by walking the package; each file holds one measure."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import isabstract

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures import copying
from memtrain.evaluation.measures.copying.base import CopyMeasure, CopyWeights
from memtrain.evaluation.measures.copying.calibration import CopyCalibration

SUGGESTED = ("aligned", "builtin", "sscd", "vision", "tiles")
"""Default measures; measures without their weights are left out."""


def measure_classes() -> dict[str, type[CopyMeasure]]:
    """Return every measure by its name, in alphabetical order."""
    found: dict[str, type[CopyMeasure]] = {}
    for module in pkgutil.iter_modules(copying.__path__):
        for kind in vars(import_module(f"{copying.__name__}.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, CopyMeasure) and not isabstract(kind):
                found[kind.name] = kind
    return dict(sorted(found.items()))


def copy_measures(
    names: Sequence[str] | None = None, *, weights: CopyWeights | None = None, size: tuple[int, int] | None = None
) -> tuple[list[CopyMeasure], dict[str, str]]:
    """Make the measures with these names.

    Args:
        names: the names of the measures; None for the suggested ones, `["all"]` for all.
        weights: the files of networks.
        size: the height and width of the images to measure.

    Returns:
        The measures, and the reasons against other measures, by name.

    Raises:
        ConfigurationError: if a name is not known, or a named measure lacks its weights.
    """
    weights = weights or CopyWeights()
    kinds = measure_classes()
    suggested = names is None or list(names) == ["all"]
    wanted = SUGGESTED if names is None else tuple(kinds) if suggested else tuple(names)
    if unknown := [name for name in wanted if name not in kinds]:
        raise ConfigurationError(
            f"There is no measure of copying {unknown[0]!r}",
            expected=f"some of {', '.join(kinds)}",
            remedy="name measures with --copy_measures",
        )
    measures: list[CopyMeasure] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        reason = kinds[name].reason_missing(weights)
        if reason is not None and not suggested:
            raise ConfigurationError(
                f"The measure {name} cannot measure: {reason}",
                expected="the weights of every named measure",
                remedy="name its weights, or leave it out from --copy_measures",
            )
        made = kinds[name].made(weights) if reason is None else None
        if made is not None and size is not None:
            reason = made.reason_against(size)
        if reason is not None:
            left_out[name] = reason
        elif made is not None:
            measures.append(made)
    return measures, left_out


def recommended(calibrations: Mapping[str, CopyCalibration]) -> str | None:
    """Return the measure that finds most edited copies, among measures that see plain copies; None if none does.

    Args:
        calibrations: the calibrations by name of the measure; of equal ones the first is taken.
    """
    seeing = {name: one for name, one in calibrations.items() if one.sees}
    return max(seeing, key=lambda name: seeing[name].edited_share) if seeing else None
