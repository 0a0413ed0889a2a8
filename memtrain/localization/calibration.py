"""What a search for neurons compares with, kept in its folder: activations for other prompts, and the threshold.

Several processes search with one calibration, and a search that was interrupted goes on with its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import read_json
from memtrain.localization.predictor import Predictor
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import Threshold
from memtrain.records import written_whole

STATISTICS, THRESHOLD, CALIBRATED_ON = "statistics.safetensors", "threshold.json", "calibrated_on.json"
"""Files of a search's folder; the last one lists the prompts that the first two were measured on."""


def calibrated_on(folder: Path) -> list[str] | None:
    """The prompts that the calibration in a folder rests on; None if there is none.

    Raises:
        ConfigurationError: if the file that lists them is spoilt.
    """
    path = folder / CALIBRATED_ON
    if not path.is_file():
        return None
    remedy = f"remove {path}; what it lists is measured again"
    try:
        found = read_json(path)
    except DataError as error:
        raise ConfigurationError(error.problem, expected="a list of prompts", remedy=remedy) from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigurationError(f"{path} holds no list of prompts", expected="one", remedy=remedy)
    return found


def kept_calibration(
    folder: Path, other_prompts: Sequence[str] | None = None
) -> tuple[ActivationStatistics, Threshold] | None:
    """What an earlier process measured in this folder; None if nothing.

    Args:
        folder: of the search.
        other_prompts: that it has to rest on; None for any.

    Raises:
        ConfigurationError: if it rests on others.
    """
    known = calibrated_on(folder)
    if known is None:
        return None
    if other_prompts is not None and list(other_prompts) != known:
        raise ConfigurationError(
            f"{folder} holds a calibration on {len(known)} prompts, which are not the {len(other_prompts)} given now",
            expected="the same prompts, or none, to use what is there",
            remedy="name another folder, or leave the other prompts out",
        )
    return ActivationStatistics.load(folder / STATISTICS), Threshold.load(folder / THRESHOLD)


def keep_calibration(
    folder: Path, others: Sequence[str], statistics: ActivationStatistics, threshold: Threshold
) -> None:
    """Keep what was measured where :func:`kept_calibration` finds it; `others` are the prompts it was measured on."""
    statistics.save(folder / STATISTICS)
    threshold.save(folder / THRESHOLD)
    # Last, because it says that the others are there.
    with written_whole(folder / CALIBRATED_ON) as unfinished:
        unfinished.write_text(json.dumps(list(others), ensure_ascii=False) + "\n", encoding="utf-8")


def require_same_model(statistics: ActivationStatistics, predictor: Predictor, folder: Path) -> None:
    """That what lies in the folder was measured on these value layers.

    Raises:
        ConfigurationError: if not.
    """
    sites = {name: site for name, site in predictor.sites("*").items() if name in statistics.mean}
    measured_here = statistics.fingerprint in ("", predictor.fingerprint(sites))  # "": the file does not say
    if len(sites) < len(statistics.mean) or not measured_here:
        raise ConfigurationError(
            f"The calibration in {folder} was measured on another model ({statistics.model or 'unnamed'})",
            expected="the model that is searched, with the same value layers",
            remedy="name another output folder, or calibrate again",
        )
