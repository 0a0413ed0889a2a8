"""Who is searched for neurons, who is compared with, and the search itself in parts.

`calibrate` measures, on prompts that are not memorized, what a search compares with: the mean and deviation of every
neuron's activation, and the similarity between seeds above which a prompt counts as memorized (NeMo, Hintersdorf et
al., NeurIPS 2024: mean plus one standard deviation of the prompts' highest pairwise similarity). `search_part` searches
a part of the prompts, on as many machines as there are parts. Both write to `neurons/` in the output folder, where the
stage `localize` goes on from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.localization import locate as search
from memtrain.localization.results import Localization
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import Threshold

NEURONS = "neurons"
"""Folder of the search, below the output folder."""
FEWEST = 4
"""Controls from which half of them calibrate; with fewer, random words do."""


@dataclass(frozen=True)
class Roles:
    """What each prompt is there for, as rows in the order of the prompts.

    Attributes:
        asked: memorized, or nothing known: they are searched.
        calibrating: controls that give statistics and threshold.
        tested: the other controls, searched for false alarms.
    """

    asked: list[int]
    calibrating: list[int]
    tested: list[int]

    @staticmethod
    def of(prompts: Sequence[PromptToScore]) -> Roles:
        """Controls are the prompts that are known not to be memorized; every other one calibrates.

        Raises:
            ConfigurationError: if prompts are repeated, or none is left to search.
        """
        asked = [row for row, prompt in enumerate(prompts) if prompt.memorized is not False]
        controls = [row for row, prompt in enumerate(prompts) if prompt.memorized is False]
        repeated = len(prompts) - len({prompt.text for prompt in prompts})
        if not asked or repeated:
            raise ConfigurationError(
                f"{len(prompts)} prompts, {repeated} of them repeated, {len(asked)} to search",
                expected="different prompts, and at least one that may be memorized",
                remedy="name each prompt once; the column `memorized` is 0 for controls alone",
            )
        calibrating = controls[::2] if len(controls) >= FEWEST else []
        return Roles(asked, calibrating, [row for row in controls if row not in set(calibrating)])

    def calibrated_on(self, prompts: Sequence[PromptToScore], others: Collection[str]) -> Roles:
        """The same with another calibration: the controls that are not among its prompts are tested."""
        calibrating = [row for row in self.controls if prompts[row].text in others]
        return Roles(self.asked, calibrating, [row for row in self.controls if row not in set(calibrating)])

    @property
    def controls(self) -> list[int]:
        """All of them."""
        return sorted([*self.calibrating, *self.tested])

    @property
    def searched(self) -> list[int]:
        """The prompts whose neurons are searched, in the order of the search."""
        return [*self.asked, *self.tested]


def calibrate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[PromptToScore],
    *,
    output: str | Path,
    settings: Settings | None = None,
) -> tuple[ActivationStatistics, Threshold]:
    """Measure activation statistics and threshold, and keep them where `localize` finds them.

    Args:
        pipeline: a Stable Diffusion 1.x or 2.x pipeline.
        prompts: beside prompts that may be memorized the controls that `localize` takes; if nothing or the same is
            known of all, all of them.
        output: folder of the evaluation.
        settings: of the search to come.

    Raises:
        ConfigurationError: if there are too few prompts, prompts are known to be memorized and none not to be, or the
            folder holds the results of a search with another calibration.
    """
    kinds = {prompt.memorized for prompt in prompts}
    if True in kinds and False not in kinds:
        raise ConfigurationError(
            f"Of {len(prompts)} prompts none is known not to be memorized",
            expected="prompts with 0 in the column `memorized`, or a file of nothing but ordinary prompts",
            remedy="name another file with --prompts",
        )
    rows = Roles.of(prompts).calibrating if len(kinds) > 1 else range(len(prompts))
    others = [prompts[row].text for row in rows]
    return search.calibrate(pipeline, others, output=Path(output) / NEURONS, settings=settings)


def search_part(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[PromptToScore],
    *,
    output: str | Path,
    shard: tuple[int, int],
    settings: Settings | None = None,
    progress: bool = True,
) -> Localization:
    """Search this process's part of the prompts that `localize` searches.

    Args:
        pipeline: a Stable Diffusion 1.x or 2.x pipeline.
        prompts: all of them, the same on every process.
        output: folder of the evaluation, the same on every process.
        shard: `(i, n)`: every n-th prompt from the i-th on.
        settings: of the search.
        progress: show a progress bar.

    Raises:
        ConfigurationError: if prompts are repeated, none is left to search, nothing is calibrated yet, which several
            processes cannot do at once, or the folder holds another search.
    """
    folder = Path(output) / NEURONS
    others = search.calibrated_on(folder)
    if others is None:
        raise ConfigurationError(
            f"{folder} holds no calibration for all parts of the prompts to compare with",
            expected="statistics and a threshold from --stages calibrate with the same --output",
            remedy="run that first",
        )
    roles = Roles.of(prompts).calibrated_on(prompts, set(others))
    return search.locate(
        pipeline,
        [prompts[row].text for row in roles.searched],
        settings=settings,
        output=folder,
        shard=shard,
        progress=progress,
    )
