"""The subcommand `detect`: scores of prompts, for any pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from memtrain.detectors.base import Detector
from memtrain.evaluation.stages.base import PromptStage, SamplingOptions, StageInput
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors, refuse_none
from memtrain.evaluation.stages.shards import read_shard


@dataclass(frozen=True, kw_only=True)
class Detect(SamplingOptions, PromptStage):
    """Score prompts for memorization, without any training image.

    Args:
        detectors: class paths with their arguments; `suggested` for a choice of cheap ones, `all` for every detector
            that can read the pipeline.
        shard: this process's part of the prompts, such as 0/4 to 3/4; `merge` to put the parts together. By default
            what a Slurm job array or torchrun says, or all prompts.
    """

    detectors: Literal["suggested", "all"] | list[Detector] = "suggested"
    shard: str | None = None

    def check(self) -> None:
        """Refuse a part that is none, and an empty list of detectors."""
        super().check()
        read_shard(self.shard)
        refuse_none(self.detectors)

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Score, and print the most suspicious prompts."""
        import pyarrow.parquet as pq

        from memtrain.evaluation.stages.detect.detect import detect
        from memtrain.evaluation.stages.detect.screen import print_detection

        shard = read_shard(self.shard)
        detectors, left_out = chosen_detectors(self.detectors, given.pipeline, given.sampling)
        for name, reason in left_out.items():
            print(f"Left out: {name}. {reason}")
        results = detect(given, detectors, shard=shard, left_out=left_out)
        if results is None:
            print(
                f"Part {shard} of the prompts is scored; others are not yet. Whoever finishes last writes the results "
                f"to {given.output}. If none does, run this again with --shard merge."
            )
            return {}
        print_detection(results, pq.read_table(given.output / "prompts.parquet"), given.output)
        return results
