"""The command `compare`: two evaluated runs, prompt by prompt and seed by seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.results_stage import ResultsStage
from memtrain.files.shown import shown


@dataclass(frozen=True, kw_only=True)
class Compare(ResultsStage):
    """Compare two evaluated runs: what the second gained over the first, and what it cost. It loads no model.

    `memtrain compare runs/a runs/b` pairs the results prompt by prompt and seed by seed. Both runs need an evaluation
    with the same sampling settings.

    Args:
        runs: two folders of runs or of results. The second is compared with the first.
        output: the folder of the results; default `runs/comparison/FIRST-SECOND`.
        level: the coverage of the intervals.
        resamples: the number of resamples of the paired bootstrap.
        seed: the seed of the paired bootstrap.
        pictures: the largest number of pictures shown side by side.
    """

    positional: ClassVar[str | None] = "runs"

    runs: list[str] = field(default_factory=list)
    level: float = 0.95
    resamples: int = 1000
    seed: int = 0
    pictures: int = 12

    def check(self) -> None:
        """Refuse anything but two folders with results."""
        if len(self.runs) != 2:
            raise ConfigurationError(
                f"{len(self.runs)} folder(s) to compare: {self.runs}",
                expected="two folders; the second is compared with the first",
                remedy="memtrain compare runs/tiny_baseline runs/tiny",
            )
        if not 0 < self.level < 1 or self.resamples < 1:
            raise ConfigurationError(
                f"level={self.level}, resamples={self.resamples}",
                expected="a level between 0 and 1, and at least one resample",
                remedy="leave both at their defaults",
            )

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        names = [_name(Path(run)) for run in self.runs]
        return Path(self.output) if self.output else Path("runs/comparison") / "-".join(names)

    def work(self) -> dict[str, Any]:
        """Pair, compare, and print the summary."""
        from memtrain.evaluation.stages.compare.compare import compare_runs
        from memtrain.evaluation.stages.compare.evaluated import Evaluated

        before, after = (Evaluated.read(Path(run), name=_name(Path(run))) for run in self.runs)
        results = compare_runs(
            before,
            after,
            output=self.folder,
            pictures=self.pictures,
            bootstrap={"seed": self.seed, "resamples": self.resamples, "level": self.level},
        )
        print(shown(results["summary"], most=5000))
        return results


def _name(folder: Path) -> str:
    """The name of a run: its folder, not the folder of its results."""
    place = folder.resolve()
    return place.parent.name if place.name == "evaluation" else place.name
