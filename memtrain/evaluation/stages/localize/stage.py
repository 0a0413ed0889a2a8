"""The subcommand `localize`: where a memorized image sits, and what brings it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import PromptStage, SamplingOptions, StageInput, WeightOptions
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.roles import Roles
from memtrain.evaluation.stages.shards import Shard, read_shard


@dataclass(frozen=True, kw_only=True)
class Localize(SamplingOptions, WeightOptions, PromptStage):
    """Find neurons that carry memorized images, mask them, and check whether the images are gone.

    Args:
        sites: attention layers whose neurons are searched, such as `*`; default those of the down blocks and the
            middle.
        contribution: share of all value neurons, such as 0.4, to mask by what they add for a prompt; default NeMo's
            search for few neurons.
        probe_steps: of the search for an embedding that brings a masked image back; 0 to leave it out.
        bake: folder to which a pipeline with all masks in its weights is saved.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; default 0.01, or with
            fewer than 99 controls the lowest that they can promise.
        shard: this process's part of the prompts to search, such as 0/4 to 3/4; `merge` to go on from there. By default
            what a Slurm job array or torchrun says, or all prompts.
    """

    sites: str | None = None
    contribution: float | None = None
    probe_steps: int = 50
    bake: str | None = None
    false_positive_rate: float | None = None
    shard: str | None = None

    def check(self) -> None:
        """Refuse a part that is none, and parts of what takes seconds."""
        super().check()
        part = read_shard(self.shard) or Shard()
        if part != Shard() and self.contribution is not None:
            raise ConfigurationError(
                f"contribution={self.contribution} with part {part} of the prompts",
                expected="NeMo's search, which takes minutes per prompt; contributions take seconds",
                remedy="leave --shard or --contribution out",
            )

    def check_prompts(self, prompts: Sequence[PromptToScore]) -> None:
        """Refuse repeated prompts, and prompts of which none may be memorized."""
        Roles.of(prompts)

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Search this process's part, or search, mask, sample and check."""
        from memtrain.evaluation.stages.localize.localize import localize
        from memtrain.evaluation.stages.localize.screen import print_localization
        from memtrain.evaluation.stages.localize.search import Search, search_part
        from memtrain.localization.settings import Settings

        part, settings = read_shard(self.shard) or Shard(), Settings(sites=self.sites)
        if part != Shard():
            found = search_part(given, shard=(part.index, part.count), settings=settings)
            print(
                f"Part {part} of the prompts is searched: {len(found)} of {len(found.found)} have neurons. When all "
                f"parts are, the same command with --shard merge masks the neurons, samples and checks."
            )
            return {}
        results = localize(
            given,
            search=Search(settings=settings, contribution=self.contribution),
            probe_steps=self.probe_steps,
            false_positive_rate=self.false_positive_rate,
            weights=self.weights,
            bake=self.bake,
        )
        print_localization(results, given.output)
        return results
