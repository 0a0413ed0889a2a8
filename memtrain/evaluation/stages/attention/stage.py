"""The command `attention`: the attention that text tokens receive while prompts are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memtrain.evaluation.stages.base import PromptStage, SamplingOptions, StageInput
from memtrain.evaluation.stages.offload_option import OffloadOption
from memtrain.evaluation.stages.shards import ShardOptions


@dataclass(frozen=True, kw_only=True)
class Attention(SamplingOptions, OffloadOption, ShardOptions, PromptStage):
    """Draw the attention that each token of a prompt receives at each step, and the entropy of all prompts.

    Args:
        most: the number of prompts that get a figure of their own, memorized ones and others in turn.
        save_arrays: also write the attention of every token at every step and in every layer, in the layout of
            MemAttn's script. A column `seed` in the file of prompts gives a prompt a first seed of its own.
    """

    most: int = 4
    save_arrays: bool = False

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Sample, draw, and print the names of the figures."""
        from memtrain.evaluation.stages.attention.attention import FOLDER, attention_plots

        results = attention_plots(given, most=self.most, save_arrays=self.save_arrays, shard=self.own_shard)
        for name in results["pictures"]:
            print(f"Attention: {given.output / FOLDER / name}")
        for name in results["arrays"]:
            print(f"Arrays: {given.output / FOLDER / name}")
        return results
