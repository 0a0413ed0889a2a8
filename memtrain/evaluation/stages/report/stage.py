"""The subcommand `report`: the page of a folder, made anew from the results in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import write_report
from memtrain.evaluation.stages.results_stage import ResultsStage


@dataclass(frozen=True, kw_only=True)
class Report(ResultsStage):
    """Make the report of a folder of results anew, without loading a model; redacted if wanted.

    `memtrain report runs/tiny --redact` writes `report-redacted.html` and `results-redacted.md` beside the
    report: each image is one block of its average colour, each caption and name a code.

    Args:
        of: a run's folder, or a folder of results.
        redact: leave images, captions and names out.
        redact_key: secret of the codes; the same one gives the same codes again. By default drawn at random and
            forgotten, so that nobody can find out a code by trying captions.
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
                "redact_key without redact", expected="both, or neither", remedy="add --redact true"
            )
        if not self.folder.is_dir():
            raise ConfigurationError(
                f"{self.folder} does not exist",
                expected="a folder of results, or the folder of a run that was evaluated",
                remedy="check the path, or evaluate: memtrain measure --run RUN",
            )

    @property
    def folder(self) -> Path:
        """Where the results are, and the report goes."""
        evaluated = Path(self.of) / "evaluation"
        return evaluated if evaluated.is_dir() else Path(self.of)

    def work(self) -> dict[str, Any]:
        """Nothing beyond the report."""
        return {}

    def report(self) -> Path:
        """Write it."""
        from memtrain.evaluation.report.redaction import check_redacted, redacted_copy

        if not self.redact:
            return write_report(self.folder)
        with redacted_copy(self.folder, secret=self.redact_key) as copy:
            path = write_report(self.folder, redacted=copy)
        check_redacted(path)
        return path
