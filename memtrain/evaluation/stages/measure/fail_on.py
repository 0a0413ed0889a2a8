"""Which results end the command with another status than 0, so that a release can be stopped by a machine.

`never`, `reproduced` and `unjudged` go by the verdict. `FIGURE > NUMBER` and `FIGURE >= NUMBER` go by a figure:

| figure | meaning |
|---|---|
| `reproduced` | share of the training pictures asked for that are reproduced |
| `share_below` | upper end of that share's interval |
| `pictures` | how many are reproduced |
| `copies` | share of the generations that are copies of a training picture |
| `generations` | how many are |

Statuses: 0 if the condition does not hold, 3 (:data:`REPRODUCED`) if it does, 4 (:data:`UNJUDGED`) where `unjudged`
was asked for and nobody can judge, or where the figure of a condition was not measured: silence would be a pass. A
figure that stays below its number counts as not measured, too, where the evaluation could not have seen copies
(:data:`BLIND`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.measure.verdict import HELDOUT_DIFFERS
from memtrain.files.exit_status import ExitStatus

REPRODUCED, UNJUDGED = ExitStatus.REPRODUCED, ExitStatus.UNJUDGED
"""Exit statuses of the command, where `fail_on` asks for them."""
WORDS = ("never", "reproduced", "unjudged")
FIGURES = ("reproduced", "share_below", "pictures", "copies", "generations")
SHARES = ("reproduced", "share_below", "copies")
BLIND = (
    *("no_threshold", "no_measure", "control_failed", HELDOUT_DIFFERS),
    *("samples_flat", "samples_alike", "samples_far", "few_steps"),
)
"""Reasons of a verdict that say that copies would have passed unseen."""
_CONDITION = re.compile(r"([a-z_]+)\s*(>=|>)\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(\s*%)?")


@dataclass(frozen=True)
class FailOn:
    """What ends the command.

    Attributes:
        word: one of :data:`WORDS`, or None.
        figure: of a condition, one of :data:`FIGURES`.
        or_equal: whether the number itself holds, too.
        number: that the figure is compared with.
    """

    word: str | None
    figure: str = ""
    or_equal: bool = False
    number: float = math.inf

    def status(self, results: Mapping[str, Any]) -> int:
        """Exit status by the results of `measure`."""
        cleared = results["verdict"]["cleared"]
        if self.word is not None:
            if cleared is False and self.word != "never":
                return REPRODUCED
            return UNJUDGED if cleared is None and self.word == "unjudged" else 0
        value = figure(results, self.figure)
        if value is None:
            return UNJUDGED
        holds = value >= self.number if self.or_equal else value > self.number
        if holds:
            return REPRODUCED
        return UNJUDGED if any(one["reason"] in BLIND for one in results["verdict"].get("reasons", ())) else 0


def figure(results: Mapping[str, Any], name: str) -> float | None:
    """A figure of the results by the name that a condition gives it; None where it was not measured."""
    verdict = results["verdict"]
    generations = (results.get("counts") or {}).get("generations") or {}
    asked = verdict.get("asked") or 0
    values = {
        "reproduced": verdict["reproduced"] / asked if asked else None,
        "share_below": verdict["share_below"] if asked else None,
        "pictures": verdict["reproduced"] if asked else None,
        "copies": generations.get("share"),
        "generations": generations.get("copies"),
    }
    value = values[name]
    return None if value is None or math.isnan(value) else float(value)


def read_fail_on(text: str) -> FailOn:
    """What `--fail_on` says.

    Raises:
        ConfigurationError: if it says nothing that can be decided.
    """
    if text in WORDS:
        return FailOn(text)
    found = _CONDITION.fullmatch(text.strip())
    if found is None or found[1] not in FIGURES:
        raise ConfigurationError(
            f"fail_on={text!r}",
            expected=f"{', '.join(WORDS)}, or a figure ({', '.join(FIGURES)}), > or >=, and a number",
            remedy="for instance --fail_on 'reproduced > 0.01'; the quotes keep the shell from reading the >",
        )
    number = float(found[3]) / (100 if found[4] else 1)
    if found[1] in SHARES and (number > 1 or (number == 1 and found[2] == ">")):
        raise ConfigurationError(
            f"fail_on={text!r}: {found[1]} is a share and never {found[2]} {number:g}",
            expected="a number below 1",
            remedy="write 1 % as 0.01; numbers of pictures are `pictures`, of generations `generations`",
        )
    return FailOn(None, found[1], found[2] == ">=", number)
