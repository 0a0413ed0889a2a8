"""Section of `calibrate` in the report, made from `calibration.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtrain.evaluation.report.section import Section, joined, made, paragraph, results_of


def sections(folder: Path) -> list[Section]:
    """Make the section on the threshold and its basis.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder, "calibration.json")
    if results is None:
        return []
    body = joined([paragraph(sentence) for sentence in sentences(results)])
    return [Section(title="Calibration of the neuron search", body=body, place=40, facts=made(results, "calibrate"))]


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Describe the calibration in words.

    Args:
        results: the content of `calibration.json`.
    """
    threshold, statistics = results["threshold"], results["statistics"]
    return [
        f"The threshold of the similarity between seeds is {threshold['value']:.3f}. It is the mean "
        f"{threshold['mean']:.3f} "
        f"plus {threshold['deviations']:g} standard deviation ({threshold['std']:.3f}) over {threshold['count']} "
        f"prompts.",
        f"The statistics cover the activation of {statistics['neurons']} neurons in {statistics['layers']} layers.",
    ]
