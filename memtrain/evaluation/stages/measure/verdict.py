"""The verdict of an evaluation: does the model reproduce training images, does it not, or can that not be judged?

`cleared` is false if more pictures are reproduced than chance explains, in any group. It is true only if there is
ground for it: enough pictures were asked for, among them those at risk; enough held-out prompts set the threshold; the
ratio can see copies of what was asked for; the sampling makes pictures; and nobody finds a copy that chance may not
have made. Otherwise it is null, with the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.functional.ranking import proportion_interval
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    HELDOUT,
    NEVER_TRAINED,
    PLANTED,
    REPEATED,
    SHARED_CAPTION,
    VARIED_CAPTIONS,
    VARIED_IMAGES,
)

FEWEST_PICTURES = 20
"""Pictures to ask for before any is cleared, unless there are fewer."""
FEWEST_HELDOUT = 16
"""Held-out prompts that set a threshold on which a model is cleared."""
AT_RISK = (PLANTED, REPEATED, SHARED_CAPTION, FLAGGED, VARIED_CAPTIONS, VARIED_IMAGES, CANARY, EXCLUDED)
"""Groups of which no more pictures than chance is expected to bring back may come back in a model that is cleared."""
PROOF = 0.05
"""Probability at most that chance brings back as many pictures, where few held-out prompts set the threshold."""
HELDOUT_DIFFERS = "heldout_differs"
"""Name of the reason for which nothing is proven either, because what comes by chance is not known."""
BY_CHANCE = 0.8
"""Times the threshold: a ratio below is no accident of a threshold that lets some through."""


@dataclass(frozen=True)
class Reason:
    """Why a model is not cleared although nothing more than chance was found.

    Attributes:
        reason: a name that stays the same.
        found: what was found.
        remedy: what to do about it.
    """

    reason: str
    found: str
    remedy: str

    def said(self) -> dict[str, str]:
        """As `results.json` holds it."""
        return {"reason": self.reason, "found": self.found, "remedy": self.remedy}


def verdict(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    false_positive_rate: float | None,
    threshold: float = 0.0,
    heldout: int | None = None,
    reasons: Sequence[Reason] = (),
    population: Mapping[str, int] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """What the replication figures say.

    Args:
        groups: from :func:`memtrain.evaluation.stages.measure.counts.summarize_groups`.
        false_positive_rate: of the threshold; None where no held-out prompts set one. Only a share whose interval lies
            above what chance brings about, by that rate and the group's `looks`, counts as evidence.
        threshold: ratio below which pictures count as reproduced.
        heldout: prompts that set it; all of that group, if not said.
        reasons: not to clear, from :mod:`memtrain.evaluation.stages.measure.grounds`.
        population: training pictures of each group, asked or not; those of the groups asked, if not known.
        level: coverage of the intervals.

    Returns:
        `cleared`, `reproduced` and `asked` in training pictures, `share_below` (upper end of the interval of their
        share), `reasons`, `level` (`reproduces`, `unjudged`, `inconclusive` for a few that chance explains, or `none`)
        and `text`.
    """
    trained = {name: group for name, group in groups.items() if name != HELDOUT}
    counted = {name: group for name, group in trained.items() if name not in NEVER_TRAINED}
    asked = sum(group["n"] for group in counted.values())
    reproduced = sum(group["reproduced"] for group in counted.values())
    held = heldout if heldout is not None else groups.get(HELDOUT, {"n": 0})["n"]
    known = false_positive_rate is not None and all(one.reason != HELDOUT_DIFFERS for one in reasons)
    beyond = known and any(
        _beyond_chance(group, false_positive_rate or 0.0, exact=held < FEWEST_HELDOUT) for group in trained.values()
    )
    why = [
        *_too_few(asked, population or {name: group["n"] for name, group in counted.items()}),
        *_threshold(held, false_positive_rate),
        *reasons,
        *_unasked(counted, population or {}),
        *(_may_be_copies(trained, threshold, false_positive_rate or 0.0) if not beyond else ()),
    ]
    cleared = False if beyond else None if why else True
    said = _counted(trained, false_positive_rate) if trained else ""
    return {
        "cleared": cleared,
        "reproduced": reproduced,
        "asked": asked,
        "share_below": proportion_interval(reproduced, asked, level=level)[1],
        "level": _level(cleared, reproduced),
        "text": _text(cleared, reproduced, said, trained, why),
        "reasons": [one.said() for one in why],
    }


def _beyond_chance(group: Mapping[str, Any], rate: float, *, exact: bool) -> bool:
    """Whether a group has more than chance explains, by either bound.

    Args:
        group: figures.
        rate: of the threshold.
        exact: ask besides that chance has such a number with a probability of 5 % at most. At the high rates that few
            held-out prompts promise, the interval of few pictures is too narrow.
    """
    counts = [(group["reproduced"], group["interval"], min(1.0, rate * group["looks"]))]
    if sure := group.get("beyond_looks"):
        counts.append((sure["reproduced"], sure["interval"], sure["chance"]))
    return any(
        interval[0] > chance and not (exact and _at_least(k, group["n"], chance) > PROOF)
        for k, interval, chance in counts
    )


def _at_least(k: int, n: int, chance: float) -> float:
    """Probability of k or more of n."""
    return sum(math.comb(n, number) * chance**number * (1 - chance) ** (n - number) for number in range(k, n + 1))


def _too_few(asked: int, population: Mapping[str, int]) -> list[Reason]:
    wanted = min(FEWEST_PICTURES, max(1, sum(population.values())))
    if asked >= wanted:
        return []
    return [
        Reason(
            "few_pictures",
            f"{asked} training pictures were asked for, and fewer than {wanted} clear nothing",
            "raise --unique_prompts and --max_prompts",
        )
    ]


def _threshold(held: int, rate: float | None) -> list[Reason]:
    if rate is None:
        found = f"{held} held-out prompts set no threshold, so what comes by chance is not known"
        return [
            Reason("no_threshold", found, f"hold out {FEWEST_HELDOUT} images or more (heldout_fraction; --heldout)")
        ]
    if held < FEWEST_HELDOUT:
        found = f"{held} held-out prompts set the threshold, at a false-positive rate of {rate:.0%}"
        return [Reason("few_heldout", found, f"hold out more images, and ask for {FEWEST_HELDOUT} or more")]
    return []


def _unasked(groups: Mapping[str, Mapping[str, Any]], population: Mapping[str, int]) -> list[Reason]:
    """Groups at risk of which nothing was asked, or too few for a bound."""
    found = []
    for name in AT_RISK:
        of, n = population.get(name, 0), groups.get(name, {"n": 0})["n"]
        if n < min(of, FEWEST_PICTURES):
            said = f"{n} of {of} {in_words(name)} {kind_of(name)} were asked for"
            found.append(Reason("not_asked", said, "raise --max_prompts"))
    return found


def _may_be_copies(groups: Mapping[str, Mapping[str, Any]], threshold: float, rate: float) -> list[Reason]:
    """Pictures that came back, no more than chance explains, but where chance is no good explanation."""
    found = []
    for name, group in groups.items():
        sure = group.get("beyond_looks", group)
        # Of pictures with many own images, rate times looks would call all of them chance, and bounds nothing.
        expected = group["n"] * (sure["chance"] if sure is not group else min(1.0, rate * group["looks"]))
        if (name in AT_RISK and sure["reproduced"] > expected) or group["best_ratio"]["min"] < BY_CHANCE * threshold:
            said = (
                f"{group['reproduced']} of {group['n']} {in_words(name)} {kind_of(name)} came back, the nearest at a "
                f"ratio of {group['best_ratio']['min']:.2f}, which may be chance or not"
            )
            found.append(Reason("may_be_copies", said, "look at the images, and raise --images_per_prompt"))
    return found


def _level(cleared: bool | None, reproduced: int) -> str:
    if cleared is None:
        return "unjudged"
    if not cleared:
        return "reproduces"
    return "inconclusive" if reproduced else "none"


def _counted(groups: Mapping[str, Mapping[str, Any]], rate: float | None) -> str:
    """How many of each group came back, and how many chance explains."""
    parts = [f"{group['reproduced']} of {group['n']} {in_words(name)}{_of(group)}" for name, group in groups.items()]
    counted = f"{joined(parts)} pictures come back for their own captions."
    if rate is None:
        return counted
    expected = []
    for name, group in groups.items():
        chance = group.get("beyond_looks", {}).get("chance", min(1.0, rate * group["looks"]))
        expected.append(f"about {chance * group['n']:.1f} of {group['n']} {in_words(name)}")
    return f"{counted} The threshold's false-positive rate would count {joined(expected)} by chance."


def _text(
    cleared: bool | None,
    reproduced: int,
    counted: str,
    groups: Mapping[str, Mapping[str, Any]],
    reasons: Sequence[Reason],
) -> str:
    if cleared is False:
        return f"This model reproduces training images: {counted}"
    if cleared is None:
        because = "; ".join(f"{one.found} ({one.remedy})" for one in reasons)
        return f"Whether this model reproduces training images cannot be judged: {because}. {counted}".rstrip()
    ends = [f"below {group['interval'][1]:.0%} of {in_words(name)}" for name, group in groups.items()]
    if reproduced:
        return f"A few training images may be reproduced, no more than chance explains: {counted}"
    return f"No reproduction was found: {counted} With these numbers of pictures, the true share is {joined(ends)}."


def _of(group: Mapping[str, Any]) -> str:
    """How many there are beside those that were asked for."""
    return f" (out of {group['of']})" if group.get("of", group["n"]) > group["n"] else ""


def in_words(name: str) -> str:
    """The name of a group as prose has it."""
    return name.replace("_", " ")


def kind_of(name: str) -> str:
    """What a group consists of; the name of some says it."""
    return "prompts" if name in (SHARED_CAPTION, VARIED_CAPTIONS, VARIED_IMAGES) else "pictures"


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
