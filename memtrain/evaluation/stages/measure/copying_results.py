"""Parts of the results by the measures of copying: their figures, controls, the verdict, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from memtrain.evaluation.stages.measure.controls import summarize_controls
from memtrain.evaluation.stages.measure.copied import Copied, own_pictures
from memtrain.evaluation.stages.measure.copying import Chosen, Compare, all_measured, said_of_copying
from memtrain.evaluation.stages.measure.counting_results import counts_by
from memtrain.evaluation.stages.measure.decision import RATIO, decided
from memtrain.evaluation.stages.measure.ratio_measure import ratio_measure
from memtrain.evaluation.stages.measure.results import Measured
from memtrain.evaluation.stages.run_samples import RunSamples


def add_copying(
    results: dict[str, Any],
    samples: RunSamples,
    found: Measured,
    *,
    family: Tensor,
    chosen: Chosen,
    bootstrap: Mapping[str, Any],
) -> list[Copied]:
    """Add `copying`, `controls` and `counts` to the results, and replace the verdict by that of all measures.

    Args:
        results: the content of `results.json` so far, with the verdict of the ratio.
        samples: the samples of P prompts.
        found: the sampling, with the findings of the ratio.
        family: the number of the picture of each training image, `(M,)`.
        chosen: the measures.
        bootstrap: the `seed`, `resamples` and `level` of intervals.

    Returns:
        The findings of each measure.
    """
    level = bootstrap["level"]
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
    tries = {RATIO: tried} | {one.copied.name: (one.planted, one.unplanted) for one in measures}
    controls = results["controls"] = summarize_controls(tries, level=level)
    results["copying"] = said_of_copying(measures, left_out, given, ratio=ratio, controls=controls)
    results["verdict"] = decided(results["verdict"], results["copying"], controls=controls, level=level)
    counted = results["verdict"]["counted_by"]
    best = next((one for one in measures if one.copied.name == counted), None)
    results["counts"] = counts_by(best, samples, found, given, bootstrap=bootstrap)
    return [one.copied for one in measures]
