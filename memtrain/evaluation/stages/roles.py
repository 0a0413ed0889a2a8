"""What each prompt is there for when neurons are searched: asked about, calibrated on, or tested for false alarms.

`calibrate` and `localize` share this, and the folder :data:`NEURONS` through which the one hands on to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.prompts import PromptToScore

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

        Args:
            prompts: each once, as :func:`distinct` makes them.

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
                remedy="take roles.distinct(prompts); the column `memorized` is 0 for controls alone",
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


def distinct(prompts: Sequence[PromptToScore]) -> list[int]:
    """The row of the first line of each prompt; a prompt that stands twice is searched once.

    Raises:
        ConfigurationError: if a prompt is said to be memorized in one line and not in another.
    """
    first: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        known = prompts[first.setdefault(prompt.text, row)].memorized
        if known is not prompt.memorized:
            raise ConfigurationError(
                f"The prompt {prompt.text!r:.80} has memorized={known} in line {first[prompt.text] + 1} and "
                f"memorized={prompt.memorized} in line {row + 1}",
                expected="one answer for each prompt",
                remedy="correct the column `memorized`",
            )
    return list(first.values())
