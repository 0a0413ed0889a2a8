"""Calibration of a search for neurons, kept in its folder: activations for other prompts, and the threshold.

Several processes search with one calibration, and an interrupted search goes on with its calibration.
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
"""Files of a search's folder. The last file lists the prompts of the first two."""


def calibrated_on(folder: Path) -> list[str] | None:
    """Return the prompts of the calibration in a folder; None if there is no calibration.

    Raises:
        ConfigurationError: if the list of prompts is damaged.
    """
    path = folder / CALIBRATED_ON
    if not path.is_file():
        return None
    remedy = f"remove {path}, and calibrate again"
    try:
        found = read_json(path)
    except DataError as error:
        raise ConfigurationError(error.problem, expected="a list of prompts", remedy=remedy) from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigurationError(f"{path} holds no list of prompts", expected="a list of texts", remedy=remedy)
    return found


def kept_calibration(
    folder: Path, other_prompts: Sequence[str] | None = None
) -> tuple[ActivationStatistics, Threshold] | None:
    """Return the calibration of an earlier process in this folder; None if there is none.

    Args:
        folder: the folder of the search.
        other_prompts: the required prompts of the calibration; None for any.

    Raises:
        ConfigurationError: if the calibration has other prompts.
    """
    known = calibrated_on(folder)
    if known is None:
        return None
    if other_prompts is not None and list(other_prompts) != known:
        raise ConfigurationError(
            f"{folder} holds a calibration on {len(known)} prompts, which differ from the {len(other_prompts)} given "
            f"now",
            expected="the same prompts, or no prompts to use this calibration",
            remedy="name another folder, or leave out the other prompts",
        )
    return ActivationStatistics.load(folder / STATISTICS), Threshold.load(folder / THRESHOLD)


def keep_calibration(
    folder: Path, others: Sequence[str], statistics: ActivationStatistics, threshold: Threshold
) -> None:
    """Keep a calibration on the prompts `others` for :func:`kept_calibration`."""
    statistics.save(folder / STATISTICS)
    threshold.save(folder / THRESHOLD)
    # Written last, because this file shows that the other files are complete.
    with written_whole(folder / CALIBRATED_ON) as unfinished:
        unfinished.write_text(json.dumps(list(others), ensure_ascii=False) + "\n", encoding="utf-8")


def require_same_model(statistics: ActivationStatistics, predictor: Predictor, folder: Path) -> None:
    """Check that the calibration in a folder was measured on these value layers.

    Raises:
        ConfigurationError: if it was measured on others.
    """
    sites = {name: site for name, site in predictor.sites("*").items() if name in statistics.mean}
    measured_here = statistics.fingerprint in ("", predictor.fingerprint(sites))  # "": not in the file
    if len(sites) < len(statistics.mean) or not measured_here:
        raise ConfigurationError(
            f"The calibration in {folder} was measured on another model ({statistics.model or 'unnamed'})",
            expected="the searched model, with the same value layers",
            remedy="name another output folder, or calibrate again",
        )
