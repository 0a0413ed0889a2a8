"""What `calibrate` says in the report: from `calibration.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtrain.evaluation.report.section import Section, joined, made, paragraph, results_of


def sections(folder: Path) -> list[Section]:
    """The threshold and what it rests on.

    Args:
        folder: of the results.
    """
    results = results_of(folder, "calibration.json")
    if results is None:
        return []
    body = joined([paragraph(sentence) for sentence in sentences(results)])
    return [Section(title="Calibration of the neuron search", body=body, place=40, facts=made(results, "calibrate"))]


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What was measured, in words.

    Args:
        results: content of `calibration.json`.
    """
    threshold, statistics = results["threshold"], results["statistics"]
    return [
        f"Threshold of the similarity between seeds: {threshold['value']:.3f}, the mean {threshold['mean']:.3f} plus "
        f"{threshold['deviations']:g} standard deviation ({threshold['std']:.3f}) over {threshold['count']} prompts.",
        f"Activation of {statistics['neurons']} neurons in {statistics['layers']} layers.",
    ]
