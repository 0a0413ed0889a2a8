"""A stage that reads results and loads no model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from memtrain.evaluation.stages.base import Stage, StageInput, write_report


@dataclass(frozen=True, kw_only=True)
class ResultsStage(Stage):
    """A stage that reads finished results: it needs neither a model nor a run, and has no option `run`.

    Attributes:
        positional: the option that takes the words in front of all options; None if such words are refused.
        without: the common options that this stage does not have.
    """

    positional: ClassVar[str | None] = None
    without: ClassVar[tuple[str, ...]] = ("run", "dtype")

    @abstractmethod
    def work(self) -> dict[str, Any]:
        """Do the work: read results, write files to `folder`, and print the findings.

        Returns:
            The content of the stage's JSON file.
        """

    def report(self) -> Path:
        """Write the report of the folder."""
        return write_report(self.folder)

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Do the same work; the model is not needed."""
        return self.work()
