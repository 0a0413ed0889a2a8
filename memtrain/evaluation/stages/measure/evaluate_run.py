"""One evaluation from start to end: sample, measure, compare, write.

Written to the output folder:

- `results.json`: aggregate figures, configuration, versions and seeds (:data:`SCHEMA_VERSION` names its layout);
- `samples.parquet`: one row per prompt and seed;
- `images/`: every generation and the own image of every prompt, as PNG.

Everything that can be refused is refused before the first image is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.measures.kid import kernel_distance, reason_to_leave_out
from memtrain.evaluation.measures.nemo_metrics import distribution_metrics, image_metrics
from memtrain.evaluation.measures.replication import (
    Replication,
    check_images,
    replication,
    reproduction_threshold,
)
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import Trace, generate
from memtrain.evaluation.stages.base import RunSamples, StageInput
from memtrain.evaluation.stages.measure.counts import (
    members,
    summarize_detectors,
    summarize_doses,
    summarize_groups,
    verdict,
)
from memtrain.evaluation.stages.measure.samples import families, own_index, samples_table, write_images
from memtrain.evaluation.stages.measure.training_record import compare_with_truth, flags_and_copies
from memtrain.evaluation.stages.provenance import provenance
from memtrain.families.descriptors.efficientnet_lite0 import EfficientNetLite0
from memtrain.records import HELDOUT, write_json, write_parquet

SCHEMA_VERSION = 1
"""Of `results.json` and `samples.parquet`; raised when a field changes its meaning or goes away."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """How figures are judged.

    Attributes:
        false_positive_rate: probability that a prompt never trained on counts as reproduced; None for 0.01, or the
            lowest that the held-out prompts can promise.
        neighbours: nearest training images that a distance is compared with.
        level: coverage of intervals.
        resamples: of bootstrap intervals.
        seed: of bootstrap intervals.
    """

    false_positive_rate: float | None = None
    neighbours: int = 50
    level: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def rate(self, heldout: int) -> float:
        """The false-positive rate with so many held-out prompts."""
        if self.false_positive_rate is not None:
            return self.false_positive_rate
        return max(0.01, 1 / (heldout + 1))

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Arguments of bootstrap intervals."""
        return {"seed": self.seed, "resamples": self.resamples, "level": self.level}


@dataclass(frozen=True)
class _Measured:
    """What was sampled, and measured on it."""

    trace: Trace
    distances: Replication
    threshold: float
    kid: Mapping[str, Any]

    @property
    def reproduced(self) -> Tensor:
        return self.distances.best < self.threshold


def evaluate_run(
    given: StageInput,
    samples: RunSamples,
    *,
    detectors: Sequence[Detector] = (),
    statistics: Statistics | None = None,
    directions: Mapping[str, str] | None = None,
    kid: bool | None = None,
    weights: Weights | None = None,
) -> dict[str, Any]:
    """Evaluate a trained pipeline and write the results.

    Args:
        given: the trained pipeline, settings of the sampling, and the output folder, in which files of an earlier
            evaluation are replaced.
        samples: the prompts, and what they are compared with.
        detectors: run on the same sampling.
        statistics: how figures are judged.
        directions: `low`, `high` or `unknown` per evidence column or prefix, where not the published one.
        kid: measure KID on the held-out prompts; by default if its features are installed.
        weights: of networks that measure beside.

    Returns:
        The content of `results.json`.

    Raises:
        DataError: if prompts and images do not belong together.
        CalibrationError: if there are too few held-out prompts for the false-positive rate.
        ConfigurationError: if settings contradict each other.
        RecordError: if the evidence table is not one.
    """
    statistics = statistics or Statistics()
    groups = [prompt.group for prompt in samples.prompts]
    held = members(groups, HELDOUT)
    rate = statistics.rate(int(held.sum()))
    own = own_index(samples.prompts, samples.training_keys, samples.own_images, samples.training_images)
    family = families(samples.training_keys, samples.templates or {})
    check_images(
        samples.own_images[:, None],
        samples.own_images,
        samples.training_images,
        neighbours=statistics.neighbours,
        family=family,
    )
    reproduction_threshold(torch.zeros(int(held.sum())), rate)
    without_kid = reason_to_leave_out(kid, prompts=int(held.sum()))
    training = None
    if samples.evidence is not None:
        training = compare_with_truth(samples.evidence, directions=directions, **statistics.bootstrap)
    loss = None
    if samples.heldout is not None:
        images, captions = samples.heldout
        loss = float(heldout_loss(given.pipeline, images, captions=captions).mean())
    trace = generate(
        given.pipeline,
        [prompt.caption for prompt in samples.prompts],
        sampling=given.sampling.sized_as(samples.own_images),
        detectors=detectors,
    )
    distances = replication(
        trace.images,
        samples.own_images,
        training=samples.training_images,
        own_index=own,
        family=family,
        neighbours=statistics.neighbours,
        device=given.pipeline.device,
    )
    distance = _kid(given, samples, trace, distances, held=held, reason=without_kid, bootstrap=statistics.bootstrap)
    found = _Measured(trace, distances, reproduction_threshold(distances.best[held], rate), distance)
    results = _results(given, samples, found, detectors=detectors, statistics=statistics, rate=rate)
    results["training"] = training
    if samples.evidence is not None and training is not None:
        copied = dict(zip((prompt.key for prompt in samples.prompts), found.reproduced.tolist(), strict=True))
        training["sampled"] = flags_and_copies(samples.evidence, copied)
    results["quality"] = {"heldout_loss": loss, "kid": distance}
    if weights is not None and weights.any:
        results["networks"] = _networks(given, samples, trace, weights)
    return _write(given, samples, found, results, detectors=detectors)


def _kid(
    given: StageInput,
    samples: RunSamples,
    trace: Trace,
    distances: Replication,
    *,
    held: Tensor,
    reason: str | None,
    bootstrap: Mapping[str, Any],
) -> Mapping[str, Any]:
    """KID of the held-out prompts, or the reason why there is none."""
    if reason is not None:
        return {"value": None, "reason": reason}
    repeated = torch.tensor([(samples.visits or {}).get(key, 0) > 1 for key in samples.training_keys])
    return kernel_distance(
        EfficientNetLite0(),
        samples.own_images[held],
        generated=trace.images[held],
        copies=repeated[distances.nearest[held]] if repeated.any() else None,
        batch_size=given.sampling.batch_size,
        device=given.pipeline.device,
        **bootstrap,
    )


def _results(
    given: StageInput,
    samples: RunSamples,
    found: _Measured,
    *,
    detectors: Sequence[Detector],
    statistics: Statistics,
    rate: float,
) -> dict[str, Any]:
    """What `results.json` says of the samples."""
    groups = [prompt.group for prompt in samples.prompts]
    distances, threshold, sampling = found.distances, found.threshold, given.sampling
    templates, visits = samples.templates or {}, samples.visits or {}
    by_group = summarize_groups(
        groups,
        distances,
        threshold=threshold,
        level=statistics.level,
        templates=[templates.get(prompt.key, prompt.key) for prompt in samples.prompts],
    )
    planned = [visits.get(prompt.key, 0) for prompt in samples.prompts]
    doses = summarize_doses(groups, planned, distances, threshold=threshold, level=statistics.level)
    family = families(samples.training_keys, templates)
    return {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "config": samples.config or {},
        "sampling": {
            **sampling.said(),
            "scheduler": type(given.pipeline.scheduler).__name__,
            "images": len(samples.prompts) * len(sampling.seeds),
        },
        "statistics": statistics.bootstrap,
        "verdict": verdict(by_group, false_positive_rate=rate),
        "replication": {
            "threshold": threshold,
            "false_positive_rate": rate,
            "n_heldout": int(members(groups, HELDOUT).sum()),
            "neighbours": distances.neighbours,
            "n_training_images": len(family.unique()),
            "groups": by_group,
            **({"doses": doses} if doses else {}),
        },
        "detectors": summarize_detectors(
            detectors,
            {detector.name: detector.score(found.trace.readings[detector.name]) for detector in detectors},
            groups,
            reproduced=found.reproduced,
            false_positive_rate=rate,
            **statistics.bootstrap,
        ),
    }


def _networks(given: StageInput, samples: RunSamples, trace: Trace, weights: Weights) -> dict[str, Any]:
    """Figures of networks per group of prompts, and distances of generations for held-out prompts to their images."""
    device = given.pipeline.device
    groups = [prompt.group for prompt in samples.prompts]
    found: dict[str, Any] = {"groups": {}}
    for name in dict.fromkeys(groups):
        inside = members(groups, name)
        # The dcr convention compares a generation with every training image, the others with the prompt's own.
        every = weights.sscd_convention == "dcr"
        found["groups"][name] = image_metrics(
            trace.images[inside],
            references=samples.training_images if every else samples.own_images[inside][:, None],
            prompts=[prompt.caption for prompt in samples.prompts if prompt.group == name],
            weights=weights,
            device=device,
        )
    held = members(groups, HELDOUT)
    generated = trace.images[held].flatten(0, 1)
    if int(held.sum()) > 1:
        found |= distribution_metrics(samples.own_images[held], generated, weights=weights, device=device)
    return found


def _write(
    given: StageInput,
    samples: RunSamples,
    found: _Measured,
    results: Mapping[str, Any],
    *,
    detectors: Sequence[Detector],
) -> dict[str, Any]:
    """Write images, table and figures; what `results.json` holds."""
    table = samples_table(
        samples,
        found.trace,
        found.distances,
        threshold=found.threshold,
        detectors=detectors,
        images=write_images(given.output, found.trace, samples.own_images),
    )
    write_parquet(table, given.output / "samples.parquet")
    return write_json(results, given.output / "results.json")
