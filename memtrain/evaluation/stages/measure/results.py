"""Content of `results.json` for measured samples, and reasons why they do not clear the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.sampling.generate import Trace
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.counts import (
    BeyondLooks,
    members,
    summarize_detectors,
    summarize_doses,
    summarize_groups,
)
from memtrain.evaluation.stages.measure.families import picture_visits, summarize_families
from memtrain.evaluation.stages.measure.grounds import (
    copies_elsewhere,
    data_reasons,
    elsewhere_reasons,
    not_seen,
    sampling_reasons,
    typical_distance,
    unseen,
)
from memtrain.evaluation.stages.measure.heldout_kind import heldout_differs
from memtrain.evaluation.stages.measure.null import by_made_captions
from memtrain.evaluation.stages.measure.samples import counted_as
from memtrain.evaluation.stages.measure.verdict import Reason, verdict
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.records import HELDOUT, MADE_CAPTION

SCHEMA_VERSION = 3
"""Version of `results.json` and `samples.parquet`; raised when a field changes its meaning or is removed."""
USUAL_RATE = 0.01
"""False-positive rate of the threshold with enough held-out prompts."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Settings of rates and intervals.

    Attributes:
        false_positive_rate: the probability that a prompt never trained on counts as reproduced; None for 0.01, or the
            lowest rate that the number of held-out prompts allows.
        neighbours: the number of nearest training images that a distance is compared with.
        level: the coverage of intervals.
        resamples: the number of resamples of bootstrap intervals.
        seed: the seed of bootstrap intervals.
    """

    false_positive_rate: float | None = None
    neighbours: int = 50
    level: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def rate(self, heldout: int) -> float | None:
        """Return the false-positive rate that this number of held-out prompts allows; None if there are none."""
        wanted = USUAL_RATE if self.false_positive_rate is None else self.false_positive_rate
        return max(wanted, 1 / (heldout + 1)) if heldout else None

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Arguments of bootstrap intervals."""
        return {"seed": self.seed, "resamples": self.resamples, "level": self.level}


@dataclass(frozen=True)
class Measured:
    """The sampling, and the findings of the ratio.

    Attributes:
        trace: the generations and readings of P prompts.
        distances: the distances of the generations.
        threshold: the ratio below which a prompt counts as reproduced.
        beyond: the thresholds that allow for several own images.
        calibrating: the prompts that set the threshold, `(P,)` bool.
        rate: the false-positive rate of the threshold; None if no prompts set it.
        own_index: the index of each own image among the training images, `(P,)`, as for
            :func:`memtrain.evaluation.measures.replication.replication`.
        shared: the training images with a prompt's caption, by prompt, as for the same function.
        perfect: the own images after the model's autoencoder, `(P, 3, H, W)` uint8.
    """

    trace: Trace
    distances: Replication
    threshold: float
    beyond: BeyondLooks
    calibrating: Tensor
    rate: float | None
    own_index: Tensor
    shared: list[list[int]]
    perfect: Tensor

    @property
    def reproduced(self) -> Tensor:
        """Prompts that count as reproduced by their own thresholds, `(P,)` bool."""
        return self.distances.best < self.beyond.thresholds.float()


def results_of_run(
    given: StageInput,
    samples: RunSamples,
    found: Measured,
    *,
    detectors: Sequence[Detector],
    statistics: Statistics,
) -> dict[str, Any]:
    """Make the content of `results.json` for the samples."""
    groups = [prompt.group for prompt in samples.prompts]
    distances, threshold, sampling, rate = found.distances, found.threshold, given.sampling, found.rate
    names = counted_as(samples)
    by_group = summarize_groups(
        groups,
        distances,
        threshold=threshold,
        level=statistics.level,
        pictures=names,
        beyond=found.beyond,
        population=samples.population,
    )
    by_group.pop(MADE_CAPTION, None)  # these prompts have no picture that could come back
    made = by_made_captions(samples, found.calibrating)
    visits = [picture_visits(samples, prompt.key) for prompt in samples.prompts]
    doses = summarize_doses(groups, visits, distances, threshold=threshold, level=statistics.level, pictures=names)
    return {
        "schema_version": SCHEMA_VERSION,
        **provenance(given.pipeline),
        "config": samples.config or {},
        "sampling": {
            **sampling.said(),
            "scheduler": type(given.pipeline.scheduler).__name__,
            "images": len(samples.prompts) * len(sampling.seeds),
        },
        "statistics": statistics.bootstrap,
        "verdict": verdict(
            by_group,
            false_positive_rate=rate,
            threshold=threshold,
            heldout=int(found.calibrating.sum()),
            reasons=_reasons(given, samples, found),
            population=samples.population,
            level=statistics.level,
        ),
        "families": summarize_families(
            samples, distances, reproduced=found.reproduced, thresholds=found.beyond.thresholds
        ),
        **({} if samples.part is None else {"compared_with": samples.part.said()}),
        "replication": {
            "threshold": threshold,
            "false_positive_rate": rate,
            "n_heldout": int(found.calibrating.sum()),
            "calibrated_by": None if rate is None else MADE_CAPTION if made else HELDOUT,
            "heldout_left_out": samples.heldout_left_out
            + (0 if made else groups.count(HELDOUT) - int(found.calibrating.sum())),
            "neighbours": distances.neighbours,
            "n_training_images": len({samples.picture(key) for key in samples.every_key}),
            "groups": by_group,
            **({"doses": doses} if doses else {}),
        },
        "detectors": summarize_detectors(
            detectors,
            {detector.name: detector.score(found.trace.readings[detector.name]) for detector in detectors},
            groups,
            reproduced=found.reproduced,
            false_positive_rate=rate if rate is not None else USUAL_RATE,
            **statistics.bootstrap,
        ),
    }


def _reasons(given: StageInput, samples: RunSamples, found: Measured) -> list[Reason]:
    """Give the reasons not to clear the model that do not depend on the counts."""
    blind = unseen(
        samples,
        found.perfect,
        own_index=found.own_index,
        shared=found.shared,
        threshold=found.threshold,
        typical=typical_distance(samples.own_images),
    )
    elsewhere = copies_elsewhere(samples, found.distances, reproduced=found.reproduced, threshold=found.threshold)
    return [
        *heldout_differs(samples, members([prompt.group for prompt in samples.prompts], HELDOUT)),
        *data_reasons(samples),
        *not_seen(samples, blind, found.reproduced),
        *sampling_reasons(
            samples, found.trace.images, found.distances, own_index=found.own_index, sampling=given.sampling
        ),
        *elsewhere_reasons(elsewhere),
    ]
