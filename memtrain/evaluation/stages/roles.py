"""Roles of prompts in a search for neurons: prompts in question, calibration, or test for false positives.

`calibrate` and `localize` share this module, and the folder :data:`NEURONS`, in which `localize` finds the calibration.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.prompts import PromptToScore

NEURONS = "neurons"
"""Folder of the search in the output folder."""
FEWEST = 4
"""Smallest number of controls of which half calibrate; with fewer, random words calibrate."""


@dataclass(frozen=True)
class Roles:
    """Roles of the prompts, as rows in the order of the prompts.

    Attributes:
        asked: the prompts in question, which are memorized or of unknown truth; they are searched.
        calibrating: the controls that give statistics and threshold.
        tested: the other controls, which are searched for false positives.
    """

    asked: list[int]
    calibrating: list[int]
    tested: list[int]

    @staticmethod
    def of(prompts: Sequence[PromptToScore]) -> Roles:
        """Assign roles: controls are the prompts known not to be memorized, and every second control calibrates.

        Args:
            prompts: the prompts, each once, as :func:`distinct` makes them.

        Raises:
            ConfigurationError: if prompts are repeated, or there are none to search.
        """
        asked = [row for row, prompt in enumerate(prompts) if prompt.memorized is not False]
        controls = [row for row, prompt in enumerate(prompts) if prompt.memorized is False]
        repeated = len(prompts) - len({prompt.text for prompt in prompts})
        if not asked or repeated:
            raise ConfigurationError(
                f"{len(prompts)} prompts, {repeated} of them repeated, {len(asked)} to search",
                expected="different prompts, and at least one that may be memorized",
                remedy="take roles.distinct(prompts), and write 0 in the column `memorized` for controls only",
            )
        calibrating = controls[::2] if len(controls) >= FEWEST else []
        return Roles(asked, calibrating, [row for row in controls if row not in set(calibrating)])

    def calibrated_on(self, prompts: Sequence[PromptToScore], others: Collection[str]) -> Roles:
        """Return the roles for another calibration: controls that are not among its prompts are tested."""
        calibrating = [row for row in self.controls if prompts[row].text in others]
        return Roles(self.asked, calibrating, [row for row in self.controls if row not in set(calibrating)])

    @property
    def controls(self) -> list[int]:
        """Rows of all controls."""
        return sorted([*self.calibrating, *self.tested])

    @property
    def searched(self) -> list[int]:
        """The prompts whose neurons are searched, in the order of the search."""
        return [*self.asked, *self.tested]


def distinct(prompts: Sequence[PromptToScore]) -> list[int]:
    """Return the row of the first line of each prompt, so that a repeated prompt is searched once.

    Raises:
        ConfigurationError: if the lines of a prompt differ in `memorized`.
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
