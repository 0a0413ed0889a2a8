"""What the measures of copying add to the results: their figures, controls, the verdict, and counts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memtrain.evaluation.stages.measure.by_group import counted_by
from memtrain.evaluation.stages.measure.controls import summarize_controls
from memtrain.evaluation.stages.measure.copied import Copied, own_pictures
from memtrain.evaluation.stages.measure.copying import Chosen, Compare, all_measured, said_of_copying
from memtrain.evaluation.stages.measure.decision import RATIO, decided
from memtrain.evaluation.stages.measure.ratio_measure import ratio_measure
from memtrain.evaluation.stages.measure.results import Measured
from memtrain.evaluation.stages.measure.samples import counted_as
from memtrain.evaluation.stages.run_samples import RunSamples


def add_copying(
    results: dict[str, Any], samples: RunSamples, found: Measured, *, family: Tensor, chosen: Chosen, level: float
) -> list[Copied]:
    """Add `copying`, `controls` and `counts` to the results, and let all measures judge.

    Args:
        results: what `results.json` says so far; its verdict is that of the ratio.
        samples: P prompts.
        found: what was sampled, and measured by the ratio.
        family: `(M,)`, the same number for training images that are one picture.
        chosen: the measures.
        level: coverage of the intervals.

    Returns:
        What each measure says of the prompts.
    """
    mine = own_pictures(found.own_index, family, found.shared)
    given = Compare(samples, found.trace.images, found.perfect, family, mine, found.calibrating, found.rate, level)
    ratio, tried = ratio_measure(
        given,
        found.distances,
        results["replication"]["groups"],
        own_index=found.own_index,
        threshold=found.threshold,
        thresholds=found.beyond.thresholds,
        level=level,
    )
    measures, left_out = all_measured(chosen, given)
    results["copying"] = said_of_copying(measures, left_out, given, ratio=ratio)
    controls = {RATIO: tried} | {one.copied.name: (one.planted, one.unplanted) for one in measures}
    results["controls"] = summarize_controls(controls, level=level)
    results["verdict"] = decided(results["verdict"], results["copying"], population=samples.population, level=level)
    copied = [one.copied for one in measures]
    results["counts"] = _counts(results, samples, found, copied, level=level)
    return copied


def _counts(
    results: dict[str, Any], samples: RunSamples, found: Measured, copied: list[Copied], *, level: float
) -> dict[str, Any]:
    """The counts people ask for, by the recommended measure."""
    best = next((one for one in copied if one.name == results["copying"]["recommended"]), None)
    reproduced = found.reproduced if best is None else best.reproduced
    counts: dict[str, Any] = {"measure": RATIO if best is None else best.name}
    if samples.grouped_by is not None:
        by_value, values = counted_by(
            samples.grouped_by, samples.prompts, counted_as(samples), reproduced=reproduced, level=level
        )
        counts |= {"by_group": by_value, "groups": values}
    return counts
