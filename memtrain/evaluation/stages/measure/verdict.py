"""The verdict of an evaluation: the model reproduces training images, it does not, or the evaluation cannot tell.

`cleared` is false if the model reproduces more pictures of any group than chance explains. It is true only if all these
conditions hold:

- enough pictures were sampled, including the pictures at risk,
- enough held-out prompts set the threshold,
- the ratio can see copies of the sampled pictures,
- the sampling makes pictures,
- chance explains every copy that was found.

Otherwise it is null, with the reasons.
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

UNJUDGED = "The model cannot be judged on this evidence"
"""The third answer, in these words on the screen, in the report and in `results.json`."""
RATIO_IN_WORDS = "the ratio of pixel distances"
"""Name of the ratio in sentences."""
FEWEST_PICTURES = 20
"""Smallest number of sampled pictures for which a model is cleared, unless the data hold fewer."""
FEWEST_HELDOUT = 16
"""Smallest number of held-out prompts whose threshold can clear a model."""
AT_RISK = (PLANTED, REPEATED, SHARED_CAPTION, FLAGGED, VARIED_CAPTIONS, VARIED_IMAGES, CANARY, EXCLUDED)
"""Groups at risk: in a cleared model, no more of their pictures come back than chance is expected to bring back."""
PROOF = 0.05
"""Largest probability of as many pictures by chance in a proof, if few held-out prompts set the threshold."""
HELDOUT_DIFFERS = "heldout_differs"
"""Name of the reason that also prevents a proof, because the false-positive rate is not known."""
BY_CHANCE = 0.8
"""Factor of the threshold: a ratio below the product is no chance event of the false-positive rate."""


@dataclass(frozen=True)
class Reason:
    """A reason why a model is not cleared although chance explains all findings.

    Attributes:
        reason: the stable name of the reason.
        found: the finding.
        remedy: the remedy.
    """

    reason: str
    found: str
    remedy: str

    def said(self) -> dict[str, str]:
        """Return the reason as `results.json` holds it."""
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
    """Judge a model by its replication figures.

    Args:
        groups: the figures by group, from :func:`memtrain.evaluation.stages.measure.counts.summarize_groups`.
        false_positive_rate: the false-positive rate of the threshold; None if no held-out prompts set one. A share is
            evidence only if its interval lies above the share by chance, which is this rate times the group's `looks`.
        threshold: the ratio below which pictures count as reproduced.
        heldout: the number of prompts that set the threshold; by default all prompts of the held-out group.
        reasons: reasons not to clear the model, from :mod:`memtrain.evaluation.stages.measure.grounds`.
        population: the numbers of training pictures by group, sampled or not; by default those of the sampled groups.
        level: the coverage of the intervals.

    Returns:
        `cleared`, `reproduced` and `asked` (numbers of training pictures), `share_below` (upper end of the interval of
        their share), `reasons`, `level` (`reproduces`, `unjudged`, `inconclusive` for a few pictures that chance
        explains, or `none`) and `text`.
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
    """Whether a group has more reproduced pictures than chance explains, by either bound.

    Args:
        group: the figures of the group.
        rate: the false-positive rate of the threshold.
        exact: whether to require also that chance brings as many with a probability of at most 5 %. The interval of
            few pictures is too narrow at the high rates that few held-out prompts give.
    """
    counts = [(group["reproduced"], group["interval"], min(1.0, rate * group["looks"]))]
    if sure := group.get("beyond_looks"):
        counts.append((sure["reproduced"], sure["interval"], sure["chance"]))
    return any(
        interval[0] > chance and not (exact and _at_least(k, group["n"], chance) > PROOF)
        for k, interval, chance in counts
    )


def _at_least(k: int, n: int, chance: float) -> float:
    """Return the binomial probability of k or more of n."""
    return sum(math.comb(n, number) * chance**number * (1 - chance) ** (n - number) for number in range(k, n + 1))


def _too_few(asked: int, population: Mapping[str, int]) -> list[Reason]:
    wanted = min(FEWEST_PICTURES, max(1, sum(population.values())))
    if asked >= wanted:
        return []
    return [
        Reason(
            "few_pictures",
            f"{asked} training pictures were sampled, and at least {wanted} are needed",
            "raise --unique_prompts and --max_prompts",
        )
    ]


def _threshold(held: int, rate: float | None) -> list[Reason]:
    if rate is None:
        found = f"{held} held-out prompts are too few for a threshold, so the false-positive rate is not known"
        return [
            Reason(
                "no_threshold",
                found,
                "train with --data.init_args.heldout_path FOLDER or --data.init_args.heldout_fraction 0.4, or measure "
                f"--model with --heldout FOLDER, so that {FEWEST_HELDOUT} pictures or more are held out",
            )
        ]
    if held < FEWEST_HELDOUT:
        found = f"only {held} held-out prompts set the threshold, at a false-positive rate of {rate:.0%}"
        return [
            Reason(
                "few_heldout",
                found,
                "train with --data.init_args.heldout_path FOLDER or --data.init_args.heldout_fraction 0.4, or measure "
                f"--model with --heldout FOLDER, so that {FEWEST_HELDOUT} pictures or more are held out",
            )
        ]
    return []


def _unasked(groups: Mapping[str, Mapping[str, Any]], population: Mapping[str, int]) -> list[Reason]:
    """Give a reason for each group at risk of which too few pictures were sampled for a bound."""
    found = []
    for name in AT_RISK:
        of, n = population.get(name, 0), groups.get(name, {"n": 0})["n"]
        if n < min(of, FEWEST_PICTURES):
            said = f"only {n} of {of} {in_words(name)} {kind_of(name)} were sampled"
            found.append(Reason("not_asked", said, "raise --max_prompts"))
    return found


def _may_be_copies(groups: Mapping[str, Mapping[str, Any]], threshold: float, rate: float) -> list[Reason]:
    """Give a reason for each group whose reproduced pictures may be copies, although their number may be chance."""
    found = []
    for name, group in groups.items():
        sure = group.get("beyond_looks", group)
        # For pictures with many own images, rate times looks reaches 1, and bounds nothing.
        expected = group["n"] * (sure["chance"] if sure is not group else min(1.0, rate * group["looks"]))
        lowest = group["best_ratio"]["min"]
        if (name in AT_RISK and sure["reproduced"] > expected) or lowest < BY_CHANCE * threshold:
            more = sure["reproduced"] > expected
            back = sure["reproduced"] if more else group["reproduced"]
            said = f"by {RATIO_IN_WORDS}, {back} of {group['n']} {in_words(name)} {kind_of(name)} came back, " + (
                more_than_chance(expected)
                if more
                else f"and the nearest has a ratio of {lowest:.2f}, far below the threshold of {threshold:.2f}"
            )
            found.append(Reason("may_be_copies", said, "look at the images, and raise --images_per_prompt"))
    return found


def more_than_chance(expected: float, *, proof: bool = False) -> str:
    """Compare a number with the number expected by chance."""
    number = f"{expected:.1f}" if expected >= 0.05 else "less than 0.1"
    return f"more than the {number} expected by chance" + ("" if proof else ", but not enough to be proof")


def _level(cleared: bool | None, reproduced: int) -> str:
    if cleared is None:
        return "unjudged"
    if not cleared:
        return "reproduces"
    return "inconclusive" if reproduced else "none"


def _counted(groups: Mapping[str, Mapping[str, Any]], rate: float | None) -> str:
    """Say how many pictures of each group came back, and how many are expected by chance."""
    parts = [f"{group['reproduced']} of {group['n']} {in_words(name)}{_of(group)}" for name, group in groups.items()]
    counted = f"By {RATIO_IN_WORDS}, {joined(parts)} pictures come back for their own captions."
    if rate is None:
        return counted
    expected = []
    for name, group in groups.items():
        chance = group.get("beyond_looks", {}).get("chance", min(1.0, rate * group["looks"]))
        expected.append(f"about {chance * group['n']:.1f} of {group['n']} {in_words(name)}")
    return f"{counted} At the threshold's false-positive rate, {joined(expected)} are expected by chance."


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
        return f"{UNJUDGED}: {because}. {counted}".rstrip()
    ends = [f"below {group['interval'][1]:.0%} of {in_words(name)}" for name, group in groups.items()]
    if reproduced:
        return f"The model may reproduce a few training images, but no more than chance explains: {counted}"
    return (
        f"The evaluation found no reproduction: {counted} With these numbers of pictures, the true share is "
        f"{joined(ends)}."
    )


def _of(group: Mapping[str, Any]) -> str:
    """Say how many pictures a group has, if not all were sampled."""
    return f" (out of {group['of']})" if group.get("of", group["n"]) > group["n"] else ""


def in_words(name: str) -> str:
    """Write the name of a group as words."""
    return name.replace("_", " ")


def kind_of(name: str) -> str:
    """Return the noun for the members of a group: prompts or pictures."""
    return "prompts" if name in (SHARED_CAPTION, VARIED_CAPTIONS, VARIED_IMAGES) else "pictures"


def joined(parts: Sequence[str]) -> str:
    """Join parts as `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
