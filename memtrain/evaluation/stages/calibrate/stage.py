"""The subcommand `calibrate`: what `localize` compares with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import PromptStage, StageInput
from memtrain.evaluation.stages.neuron_options import SearchOptions
from memtrain.evaluation.stages.shards import ShardOptions


@dataclass(frozen=True, kw_only=True)
class Calibrate(SearchOptions, ShardOptions, PromptStage):
    """Measure activation statistics and a threshold on prompts that are not memorized, for `localize`.

    Args:
        export: file (.pt) to which the statistics are written beside, as NeMo's scripts read them.
    """

    export: str | None = None

    def check(self) -> None:
        """Refuse options that contradict each other, and a file of another kind."""
        super().check()
        _ = self.search_settings
        if self.export is not None and Path(self.export).suffix != ".pt":
            raise ConfigurationError(
                f"export={self.export!r}",
                expected="a file that ends with .pt, as NeMo's scripts read it; ours is in the output folder anyway",
                remedy="correct --export",
            )

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Measure, and say where `localize` finds it."""
        from memtrain.evaluation.stages.calibrate.calibrate import calibrate
        from memtrain.evaluation.stages.calibrate.section import sentences
        from memtrain.evaluation.stages.roles import NEURONS

        export = None if self.export is None else Path(self.export)
        results = calibrate(given, settings=self.search_settings, export=export, shard=self.own_shard)
        print(
            "\n".join(sentences(results))
            + f"\nWritten to {given.output / NEURONS}, where `localize` with the same --output finds both."
            + ("" if export is None else f"\nStatistics for NeMo's scripts: {export}")
        )
        return results
