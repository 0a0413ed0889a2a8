"""The command `calibrate`: the statistics that `localize` compares with."""

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
        export: a second file (.pt) for the statistics, in the format of NeMo's scripts.
    """

    export: str | None = None

    def check(self) -> None:
        """Refuse options that contradict each other, and a file of another kind."""
        super().check()
        _ = self.search_settings
        if self.export is not None and Path(self.export).suffix != ".pt":
            raise ConfigurationError(
                f"export={self.export!r}",
                expected="a file name that ends with .pt, as NeMo's scripts expect",
                remedy="correct --export; memtrain's own file is in the output folder",
            )

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Measure, and print where `localize` finds the statistics."""
        from memtrain.evaluation.stages.calibrate.calibrate import calibrate
        from memtrain.evaluation.stages.calibrate.section import sentences
        from memtrain.evaluation.stages.roles import NEURONS

        export = None if self.export is None else Path(self.export)
        results = calibrate(given, settings=self.search_settings, export=export, shard=self.own_shard)
        print(
            "\n".join(sentences(results))
            + f"\nWritten to {given.output / NEURONS}. `localize` with the same --output finds both."
            + ("" if export is None else f"\nStatistics for NeMo's scripts: {export}")
        )
        return results
