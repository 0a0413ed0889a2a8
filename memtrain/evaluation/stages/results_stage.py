"""A stage that reads results and loads no model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from memtrain.evaluation.stages.base import Stage, StageInput, write_report


@dataclass(frozen=True, kw_only=True)
class ResultsStage(Stage):
    """A stage of results that are there: it needs neither a model nor a run, and has no option `run`.

    Attributes:
        positional: the option that words without a name in front belong to; None if they are refused.
        without: options of all stages that this one does not have.
    """

    positional: ClassVar[str | None] = None
    without: ClassVar[tuple[str, ...]] = ("run", "dtype")

    @abstractmethod
    def work(self) -> dict[str, Any]:
        """Do the work: read results, write files to `folder`, print what was found.

        Returns:
            What the stage's JSON file holds.
        """

    def report(self) -> Path:
        """Write the report of the folder."""
        return write_report(self.folder)

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """The same, whatever model there is."""
        return self.work()
