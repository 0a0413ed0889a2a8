"""One evaluation from start to end: sample, measure, compare, write.

The evaluation writes to the output folder:

- `results.json`: aggregate figures, configuration, versions and seeds (its `schema_version` names its layout);
- `samples.parquet`: one row per prompt and seed;
- `images/`: every generation and the own image of every prompt, as PNG;
- `unfinished/`, while it runs: the generations so far, from which a killed evaluation goes on.

All checks of settings and data run before the first image is sampled.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.kid import reason_to_leave_out
from memtrain.evaluation.measures.looks import thresholds_beyond_looks
from memtrain.evaluation.measures.replication import (
    Replication,
    check_images,
    replication,
    reproduction_threshold,
)
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import Trace
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.copied import Copied
from memtrain.evaluation.stages.measure.copying import Chosen
from memtrain.evaluation.stages.measure.copying_results import add_copying
from memtrain.evaluation.stages.measure.counts import BeyondLooks, members
from memtrain.evaluation.stages.measure.exposed import exposure_of_run
from memtrain.evaluation.stages.measure.grounds import FALLBACK_THRESHOLD
from memtrain.evaluation.stages.measure.heldout_kind import heldout_differs
from memtrain.evaluation.stages.measure.null import by_made_captions, nearest_ratios, null_prompts
from memtrain.evaluation.stages.measure.quality import kid_of_run, networks_of_run, quality_of_run
from memtrain.evaluation.stages.measure.results import Measured, Statistics, results_of_run
from memtrain.evaluation.stages.measure.sampled import sampled
from memtrain.evaluation.stages.measure.samples import (
    own_index_of,
    picture_numbers,
    samples_table,
    under_one_caption,
    write_images,
)
from memtrain.evaluation.stages.measure.sentences import cannot_say, rests_on
from memtrain.evaluation.stages.measure.training_record import compare_with_truth, flags_and_copies
from memtrain.evaluation.stages.measure.verdict import Reason
from memtrain.evaluation.stages.parts import UNFINISHED
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.files.shown import shown
from memtrain.records import HELDOUT, write_parquet


def evaluate_run(
    given: StageInput,
    samples: RunSamples,
    *,
    detectors: Sequence[Detector] = (),
    statistics: Statistics | None = None,
    directions: Mapping[str, str] | None = None,
    kid: bool | None = None,
    weights: Weights | None = None,
    copying: Chosen | None = None,
    shard: Shard | None = WHOLE,
) -> dict[str, Any]:
    """Evaluate a trained pipeline and write the results.

    Args:
        given: the pipeline, the settings of the sampling, and the output folder, whose earlier files are replaced.
        samples: the prompts, and the images that their generations are compared with.
        detectors: the detectors that read the same sampling.
        statistics: the settings of rates and intervals.
        directions: the directions (`low`, `high`, `unknown`) of evidence columns that differ from the published ones.
        kid: whether to measure KID on the held-out prompts; by default if its features are installed.
        weights: the weight files of further networks.
        copying: the measures of copying; None for the ratio of pixel distances alone, without controls.
        shard: this process's share of the sampling, if several share a folder; None to sample nothing.

    Returns:
        The content of `results.json`.

    Raises:
        DataError: if prompts and images do not belong together.
        CalibrationError: if there are too few held-out prompts for the false-positive rate.
        ConfigurationError: if settings contradict each other.
        RecordError: if the evidence table lacks a column.
        UnfinishedParts: if other processes have not sampled their share.
    """
    statistics = statistics or Statistics()
    held = members([prompt.group for prompt in samples.prompts], HELDOUT)
    calibrating = _checked(samples, statistics, held)
    rate = statistics.rate(int(calibrating.sum()))
    without_kid = reason_to_leave_out(kid, prompts=int(held.sum()))
    training = _training(samples, directions, statistics)
    _warn(heldout_differs(samples, held))
    trace, losses, perfect = sampled(given, samples, detectors, shard=shard)
    samples = samples.with_candidates(trace.images, given.output / UNFINISHED)
    own, family = own_index_of(samples), picture_numbers(samples)
    shared = under_one_caption(samples)
    distances = replication(
        trace.images,
        samples.own_images,
        training=samples.training_images,
        own_index=own,
        family=family,
        shared=shared,
        neighbours=statistics.neighbours,
        device=given.pipeline.device,
    )
    threshold, beyond = _thresholds(samples, trace, distances, calibrating=calibrating, rate=rate)
    found = Measured(trace, distances, threshold, beyond, calibrating, rate, own, shared, perfect)
    distance = kid_of_run(
        given, samples, trace, distances, held=held, reason=without_kid, bootstrap=statistics.bootstrap
    )
    results = results_of_run(given, samples, found, detectors=detectors, statistics=statistics)
    results["training"] = training
    _add_sampled(training, samples, found)
    results["quality"] = quality_of_run(
        *(given, samples, trace),
        held=held,
        losses=losses,
        kid=distance,
        weights=weights,
        bootstrap=statistics.bootstrap,
    )
    if weights is not None and weights.any:
        results["networks"] = networks_of_run(given, samples, trace, weights)
    copied: list[Copied] = []
    if copying is not None:
        copied = add_copying(results, samples, found, family=family, chosen=copying, bootstrap=statistics.bootstrap)
        results["counts"]["exposure"] = exposure_of_run(given, samples, copying, by=results["verdict"]["counted_by"])
    results["verdict"] |= {"rests_on": rests_on(results), "cannot_say": cannot_say(results)}
    return _write(given, samples, found, results, detectors=detectors, copied=copied)


def _warn(reasons: Sequence[Reason]) -> None:
    for reason in reasons:
        print(shown(f"Warning: {reason.found}. {reason.remedy[0].upper()}{reason.remedy[1:]}.", most=2000))


def _add_sampled(training: dict[str, Any] | None, samples: RunSamples, found: Measured) -> None:
    """Add the comparison of flags in training with the reproduced prompts."""
    if samples.evidence is not None and training is not None:
        back = dict(zip((prompt.key for prompt in samples.prompts), found.reproduced.tolist(), strict=True))
        training["sampled"] = flags_and_copies(samples.evidence, back)


def _checked(samples: RunSamples, statistics: Statistics, held: Tensor) -> Tensor:
    """Check images and rate, and return the prompts that set the threshold, `(P,)` bool."""
    own_index_of(samples)  # raises if prompts and images do not belong together
    check_images(
        samples.own_images[:, None],
        samples.own_images,
        samples.training_images,
        neighbours=statistics.neighbours,
        family=picture_numbers(samples),
    )
    calibrating = null_prompts(samples)
    if statistics.false_positive_rate is not None:
        wanted = held if held.any() else calibrating
        reproduction_threshold(torch.zeros(int(wanted.sum())), statistics.false_positive_rate)
    return calibrating


def _training(
    samples: RunSamples, directions: Mapping[str, str] | None, statistics: Statistics
) -> dict[str, Any] | None:
    """Compare the evidence of training with the known groups; None without evidence."""
    if samples.evidence is None:
        return None
    pictures = {key: samples.picture(key) for key in samples.every_key}
    return compare_with_truth(samples.evidence, directions=directions, pictures=pictures, **statistics.bootstrap)


def _thresholds(
    samples: RunSamples, trace: Trace, distances: Replication, *, calibrating: Tensor, rate: float | None
) -> tuple[float, BeyondLooks]:
    """Return the threshold for prompts with one own image, and the thresholds that allow for several."""
    if rate is None:
        unknown = torch.full((len(samples.prompts),), 1.0)
        return FALLBACK_THRESHOLD, BeyondLooks(FALLBACK_THRESHOLD * unknown, unknown)
    made = by_made_captions(samples, calibrating)
    threshold = reproduction_threshold((nearest_ratios(distances) if made else distances.best)[calibrating], rate)
    return threshold, BeyondLooks(
        *thresholds_beyond_looks(
            distances,
            trace.images,
            own=samples.own_images,
            training=samples.training_images,
            calibrating=calibrating,
            threshold=threshold,
            rate=rate,
        )
    )


def _write(
    given: StageInput,
    samples: RunSamples,
    found: Measured,
    results: Mapping[str, Any],
    *,
    detectors: Sequence[Detector],
    copied: Sequence[Copied],
) -> dict[str, Any]:
    """Write images, table and figures; return the content of `results.json`."""
    table = samples_table(
        samples,
        found.trace,
        found.distances,
        thresholds=found.beyond.thresholds,
        detectors=detectors,
        images=write_images(given.output, found.trace, samples.own_images),
        copied=copied,
    )
    write_parquet(table, given.output / "samples.parquet")
    written = write_results(results, given.output / "results.json")
    # Its content is in images/ and the table now.
    for folder in (given.output / UNFINISHED, *given.output.glob("training_images-*-of-*")):
        shutil.rmtree(folder, ignore_errors=True)
    return written
