"""The command `localize`: which neurons carry a memorized image, and what brings the image back."""

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
        statistics: the file of activations for other prompts, from `calibrate` (.safetensors) or NeMo's script (.pt).
            Without it, they are measured on half of the controls, or on random words.
        threshold: the similarity between seeds above which a prompt counts as memorized, such as NeMo's 0.428 for
            Stable Diffusion 1.4. Without it, half of the controls or random words calibrate the threshold.
        contribution: the share of all value neurons to mask, such as 0.4, by their contribution to a prompt. Without
            it, NeMo's search finds few neurons.
        probe_steps: the steps of the search for an embedding that brings a masked image back; 0 leaves the search out.
        bake: the folder of a pipeline that is saved with all masks in its weights.
        false_positive_rate: the probability that a prompt never trained on counts as reproduced. The default is 0.01,
            or with fewer than 99 controls the lowest rate that they can promise.
        baselines: further masks to compare with, separated by commas, or `all`: `initial` (the first selection),
            `random`, `most_active`, and the same masks for all prompts `frequent`, `frequent_per_layer`,
            `frequent_sets` and `random_frequent`.
        baseline_k: the number of neurons in each layer for `most_active` and `frequent_per_layer`, the number of all
            neurons for `frequent`, and the number of sets for `frequent_sets`.
        save_images: also write every image to a file, such as `images/original/0000/seed-0.png`.
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
        """Refuse a wrong part, parts of a search that takes seconds, unknown baselines, and wrong files."""
        super().check()
        read_baselines(self.baselines)
        _ = self.search_settings  # refuses settings that contradict each other
        part = read_shard(self.shard) or Shard()
        if part != Shard() and self.contribution is not None:
            raise ConfigurationError(
                f"contribution={self.contribution} with part {part} of the prompts",
                expected="parts of NeMo's search, which takes minutes per prompt; contributions take seconds",
                remedy="leave out --shard or --contribution",
            )
        if self.contribution is not None and (self.published or self.statistics is not None):
            raise ConfigurationError(
                f"contribution={self.contribution} with published={self.published} and statistics={self.statistics!r}",
                expected="published and statistics with NeMo's search, or contribution alone",
                remedy="leave out --contribution, or the other options",
            )
        if self.baseline_k < 1:
            raise ConfigurationError(
                f"baseline_k={self.baseline_k}", expected="at least 1", remedy="correct --baseline_k"
            )
        if self.statistics is not None:
            require_statistics(Path(self.statistics))

    def check_prompts(self, prompts: Sequence[PromptToScore]) -> None:
        """Refuse prompts if none may be memorized, and repeated prompts that contradict each other."""
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
                    f"{left} prompts of other parts are not searched yet. When all are, give the same commands again: "
                    "they share the work after the search. With --shard merge one process does this work."
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
