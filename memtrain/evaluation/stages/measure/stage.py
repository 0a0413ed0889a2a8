"""The subcommand `measure`: what does a finished run reproduce, and what did training say?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memtrain.detectors.base import Detector
from memtrain.evaluation.stages.base import SamplingOptions, Stage, StageInput, WeightOptions
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors, suggested_beside

REPRODUCED, UNJUDGED = 3, 4
"""Exit statuses of the command, where `fail_on` asks for them."""


@dataclass(frozen=True, kw_only=True)
class Measure(SamplingOptions, WeightOptions, Stage):
    """Sample a run's own captions, measure what is reproduced, and compare with what training recorded.

    Args:
        max_prompts: pictures at most in each group (planted, repeated, flagged, excluded, canary, held-out), templates,
            or captions that several pictures share. Of repeated pictures the data hold several files.
        unique_prompts: prompts of images that were trained on once per epoch, chosen at random; flagged ones are asked
            for beside them.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; sets the threshold.
            Default 0.01, or with fewer than 99 held-out prompts the lowest that they can promise.
        kid: measure KID on the held-out prompts; by default if the extra `quality` is installed.
        detectors: read the sampling, as class paths with their arguments; `suggested` for a choice of cheap ones, `all`
            for every one that can, `none` to save a third of the time.
        fail_on: which verdict ends the command with another status than 0. `reproduced`: 3 if training images are
            reproduced. `unjudged`: 3 likewise, and 4 if that cannot be judged, so that 0 is an all-clear. `never`: 0
            for every verdict. Status 1 is an error, 2 a command that cannot be read.
    """

    max_prompts: int = 150
    unique_prompts: int = 60
    false_positive_rate: float | None = None
    kid: bool | None = None
    detectors: Literal["suggested", "all", "none"] | list[Detector] = "suggested"
    fail_on: Literal["never", "reproduced", "unjudged"] = "never"

    def exit_status(self, results: Mapping[str, Any]) -> int:
        """By `fail_on` and the verdict."""
        cleared = results["verdict"]["cleared"]
        if cleared is False and self.fail_on != "never":
            return REPRODUCED
        return UNJUDGED if cleared is None and self.fail_on == "unjudged" else 0

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Sample, measure, compare, and print the tables."""
        from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
        from memtrain.evaluation.stages.measure.evidence_curves import write_evidence_curves
        from memtrain.evaluation.stages.measure.results import Statistics
        from memtrain.evaluation.stages.measure.screen import print_results

        assert given.run is not None  # there is no option for a model without a run
        detectors, left_out = chosen_detectors(
            self.detectors, given.pipeline, given.sampling, suggested=suggested_beside
        )
        for name, reason in left_out.items():
            print(f"Left out: {name}. {reason}")
        samples = given.run.samples(most=self.max_prompts, unique=self.unique_prompts)
        keys = [prompt.key for prompt in samples.prompts]
        write_evidence_curves(Path(self.run) / "records", given.output, keys=keys)
        results = evaluate_run(
            given,
            samples,
            detectors=detectors,
            statistics=Statistics(false_positive_rate=self.false_positive_rate),
            kid=self.kid,
            weights=self.weights,
        )
        print_results(results, given.output)
        return results
