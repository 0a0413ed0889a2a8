"""The subcommand `calibrate`: what `localize` compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memtrain.evaluation.stages.base import PromptStage, StageInput


@dataclass(frozen=True, kw_only=True)
class Calibrate(PromptStage):
    """Measure activation statistics and a threshold on prompts that are not memorized, for `localize`.

    Args:
        sites: attention layers whose neurons will be searched, such as `*`; default those of the down blocks and the
            middle.
    """

    sites: str | None = None

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Measure, and say where `localize` finds it."""
        from memtrain.evaluation.stages.calibrate.calibrate import calibrate
        from memtrain.evaluation.stages.calibrate.section import sentences
        from memtrain.evaluation.stages.roles import NEURONS
        from memtrain.localization.settings import Settings

        results = calibrate(given, settings=Settings(sites=self.sites))
        print(
            "\n".join(sentences(results))
            + f"\nWritten to {given.output / NEURONS}, where `localize` with the same --output finds both."
        )
        return results
