"""The command `report`: the report of a folder, written again from the results in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import write_report
from memtrain.evaluation.stages.results_stage import ResultsStage


@dataclass(frozen=True, kw_only=True)
class Report(ResultsStage):
    """Write the report of a folder of results again, also without images and names. It loads no model.

    `memtrain report runs/tiny --redact` writes `report-redacted.html` and `results-redacted.md` beside the report.
    Each image becomes one block of its average colour. Each caption and name becomes a code.

    Args:
        of: the folder of a run, or a folder of results.
        redact: leave out images, captions and names.
        redact_key: the secret of the codes; the same secret gives the same codes again. The default is drawn at random
            and forgotten, so that nobody can find a caption by trying.
    """

    positional: ClassVar[str | None] = "of"
    without: ClassVar[tuple[str, ...]] = ("run", "output", "dtype")

    of: str = "runs/tiny"
    redact: bool = False
    redact_key: str | None = None

    def check(self) -> None:
        """Refuse a secret without its use, and a folder that is not there."""
        if self.redact_key is not None and not self.redact:
            raise ConfigurationError(
                "redact_key without redact", expected="both options, or neither", remedy="add --redact true"
            )
        if not self.folder.is_dir():
            raise ConfigurationError(
                f"{self.folder} does not exist",
                expected="a folder of results, or the folder of a run that was evaluated",
                remedy="check the path, or evaluate the run first: memtrain measure --run RUN",
            )

    @property
    def folder(self) -> Path:
        """The folder of the results and of the report."""
        evaluated = Path(self.of) / "evaluation"
        return evaluated if evaluated.is_dir() else Path(self.of)

    def work(self) -> dict[str, Any]:
        """Do nothing: the report is all there is to write."""
        return {}

    def report(self) -> Path:
        """Write the report."""
        from memtrain.evaluation.report.redaction import check_redacted, redacted_copy

        if not self.redact:
            return write_report(self.folder)
        with redacted_copy(self.folder, secret=self.redact_key) as copy:
            path = write_report(self.folder, redacted=copy)
        check_redacted(path)
        return path
