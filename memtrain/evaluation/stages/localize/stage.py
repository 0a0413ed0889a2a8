"""The subcommand `localize`: where a memorized image sits, and what brings it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import PromptStage, SamplingOptions, StageInput, WeightOptions
from memtrain.evaluation.stages.localize.baseline_names import read_baselines
from memtrain.evaluation.stages.neuron_options import SearchOptions, require_statistics
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.roles import Roles, distinct
from memtrain.evaluation.stages.shards import WHOLE, Shard, ShardOptions, read_shard


@dataclass(frozen=True, kw_only=True)
class Localize(SearchOptions, SamplingOptions, WeightOptions, ShardOptions, PromptStage):
    """Find neurons that carry memorized images, mask them, and check whether the images are gone.

    Args:
        statistics: file of activations for other prompts, of `calibrate` (.safetensors) or of NeMo's script (.pt);
            default measured on half of the controls, or on random words.
        threshold: similarity between seeds above which a prompt counts as memorized, such as 0.428, NeMo's for Stable
            Diffusion 1.4; default calibrated on half of the controls, or on random words.
        contribution: share of all value neurons, such as 0.4, to mask by what they add for a prompt; default NeMo's
            search for few neurons.
        probe_steps: of the search for an embedding that brings a masked image back; 0 to leave it out.
        bake: folder to which a pipeline with all masks in its weights is saved.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; default 0.01, or with
            fewer than 99 controls the lowest that they can promise.
        baselines: masks to sample under beside, with commas between them, or `all`: `initial` (the first selection),
            `random`, `most_active`, and for all prompts alike `frequent`, `frequent_per_layer`, `frequent_sets` and
            `random_frequent`.
        baseline_k: neurons of `most_active` and `frequent_per_layer` in each layer, of `frequent` in all, and sets of
            `frequent_sets`.
        save_images: write every image to a file, such as `images/original/0000/seed-0.png`.
    """

    statistics: str | None = None
    threshold: float | None = None
    contribution: float | None = None
    probe_steps: int = 50
    bake: str | None = None
    false_positive_rate: float | None = None
    baselines: str = ""
    baseline_k: int = 10
    save_images: bool = False

    def check(self) -> None:
        """Refuse a part that is none, parts of what takes seconds, unknown baselines, and files that are none."""
        super().check()
        read_baselines(self.baselines)
        _ = self.search_settings  # refuses what contradicts itself
        part = read_shard(self.shard) or Shard()
        if part != Shard() and self.contribution is not None:
            raise ConfigurationError(
                f"contribution={self.contribution} with part {part} of the prompts",
                expected="NeMo's search, which takes minutes per prompt; contributions take seconds",
                remedy="leave --shard or --contribution out",
            )
        if self.contribution is not None and (self.published or self.statistics is not None):
            raise ConfigurationError(
                f"contribution={self.contribution} with published={self.published} and statistics={self.statistics!r}",
                expected="NeMo's search, which those are for",
                remedy="leave --contribution or the others out",
            )
        if self.baseline_k < 1:
            raise ConfigurationError(
                f"baseline_k={self.baseline_k}", expected="at least 1", remedy="correct --baseline_k"
            )
        if self.statistics is not None:
            require_statistics(Path(self.statistics))

    def check_prompts(self, prompts: Sequence[PromptToScore]) -> None:
        """Refuse prompts of which none may be memorized, and repeated ones that contradict each other."""
        Roles.of([prompts[row] for row in distinct(prompts)])

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Search this process's part, or search, mask, sample and check."""
        from memtrain.evaluation.stages.localize.localize import localize
        from memtrain.evaluation.stages.localize.screen import print_localization
        from memtrain.evaluation.stages.localize.search import Search, search_part

        part = read_shard(self.shard) or WHOLE
        search = Search(
            settings=self.search_settings,
            statistics=None if self.statistics is None else Path(self.statistics),
            threshold=self.threshold,
            contribution=self.contribution,
        )
        if part != WHOLE:
            found, left = search_part(given, shard=(part.index, part.count), search=search)
            print(f"Part {part} of the prompts is searched: {len(found)} of {len(found.found)} have neurons.")
            if left:
                print(
                    f"{left} prompts of other parts are not yet. When all are, the same commands again share what "
                    "comes after the search; with --shard merge one process does what is left of it."
                )
                return {}
        results = localize(
            given,
            search=search,
            probe_steps=self.probe_steps,
            false_positive_rate=self.false_positive_rate,
            weights=self.weights,
            bake=self.bake,
            baselines=read_baselines(self.baselines),
            baseline_k=self.baseline_k,
            save_images=self.save_images,
            shard=part,
        )
        print_localization(results, given.output)
        return results
