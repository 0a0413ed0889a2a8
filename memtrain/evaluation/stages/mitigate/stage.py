"""The command `mitigate`: what a mitigation during sampling changes, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memtrain.evaluation.stages.base import PromptStage, SamplingOptions, StageInput, WeightOptions
from memtrain.evaluation.stages.shards import ShardOptions
from memtrain.inference.attention_masking import AttentionMasking
from memtrain.inference.base import InferenceMitigation


@dataclass(frozen=True, kw_only=True)
class Mitigate(SamplingOptions, WeightOptions, ShardOptions, PromptStage):
    """Sample every prompt without and with a mitigation on the same noise, and compare the images.

    Args:
        mitigation: the mitigation, as in configs/inference; default MemAttn's attention masking.
        false_positive_rate: the probability that a prompt never trained on counts as reproduced. The default is the
            lowest rate that the prompts known not to be memorized can promise, but at least 0.01.
    """

    mitigation: InferenceMitigation = field(default_factory=AttentionMasking)
    false_positive_rate: float | None = None

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Sample, compare, and print the table."""
        from memtrain.evaluation.stages.mitigate.mitigate import mitigate
        from memtrain.evaluation.stages.mitigate.screen import print_mitigation

        results = mitigate(
            given,
            self.mitigation,
            weights=self.weights,
            false_positive_rate=self.false_positive_rate,
            shard=self.own_shard,
        )
        print_mitigation(results, given.output)
        return results
