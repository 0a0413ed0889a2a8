"""May this model be released? The verdict of the ratio and of all measures of copying together.

`cleared` is false if a measure that sees copies in these data, and whose threshold is calibrated, finds more pictures
of a group than chance explains. The probability of as many by chance is exact
(:mod:`memtrain.evaluation.stages.measure.chance`). It has to be at most 5 % divided by the number of such measures and
groups (Bonferroni), so that many tests do not make a proof by their number. `cleared` is true if the recommended
measure sees copies, its controls hold, its power for edited copies is stated, and chance explains all findings of all
measures. Otherwise `cleared` is null, with the reasons. It is also null if held-out pictures are of another kind,
because the false-positive rate is then not known. Sentences on the basis and the limits of the verdict stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.evaluation.stages.measure.verdict import (
    AT_RISK,
    HELDOUT_DIFFERS,
    PROOF,
    RATIO_IN_WORDS,
    UNJUDGED,
    Reason,
    in_words,
    joined,
    kind_of,
    more_than_chance,
)
from memtrain.functional.ranking import proportion_interval
from memtrain.records import HELDOUT, MADE_CAPTION, NEVER_TRAINED

RATIO = "ratio"
"""Name of the measure of the replication figures."""


def called(name: str | None) -> str:
    """Return the name of a measure in sentences."""
    return RATIO_IN_WORDS if name == RATIO else str(name)


def trusted_measures(copying: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the measures, by name, that see copies in these data and have a known false-positive rate."""
    return {
        name: measure
        for name, measure in copying["measures"].items()
        if measure["sees"] and measure["false_positive_rate"] is not None
    }


def decided(
    by_ratio: Mapping[str, Any],
    copying: Mapping[str, Any],
    *,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Judge a model by the ratio and by all other measures of copying.

    Args:
        by_ratio: the verdict of the ratio, from :func:`memtrain.evaluation.stages.measure.verdict.verdict`.
        copying: the part `copying` of `results.json`.
        controls: the part `controls` of `results.json`. A measure whose controls fail clears no model.
        level: the coverage of the intervals.

    Returns:
        The keys of `by_ratio`, and `counted_by`: the name of the measure of `reproduced`, `asked` and `share_below`. It
        is the recommended measure, unless another measure proves that more pictures came back.
    """
    trusted = trusted_measures(copying)
    recommended = copying["recommended"]
    tests = sum(len(_trained(one["groups"])) for one in trusted.values())
    proof = {name: found for name, one in trusted.items() if (found := _proven(one, PROOF / max(1, tests)))}
    if RATIO in copying["measures"]:
        # The ratio's own verdict has to agree: it knows how many own images each picture was compared with.
        proof = {name: found for name, found in proof.items() if name != RATIO or by_ratio["cleared"] is False}
    if any(one["reason"] == HELDOUT_DIFFERS for one in by_ratio["reasons"]):
        proof = {}
    by = _counted_by(proof, recommended)
    counted = copying["measures"].get(by)
    why = [
        Reason(**one)
        for one in by_ratio["reasons"]
        if not (one["reason"] == "copies_unseen" and recommended not in (None, RATIO))
    ]
    why += _no_measure(copying) if recommended not in trusted else []
    why += _failed(recommended, (controls or {}).get(recommended or "", {}))
    why += [
        one
        for name, measure in trusted.items()
        for one in _suspicious(name, measure, name == recommended, proof.get(name, {}))
    ]
    cleared = False if proof else None if why else True
    groups = _trained((counted or {"groups": {}})["groups"])
    asked = {name: group for name, group in groups.items() if name not in NEVER_TRAINED}
    n, k = (sum(group[key] for group in asked.values()) for key in ("n", "reproduced"))
    if counted is None:
        n, k = by_ratio["asked"], by_ratio["reproduced"]
    return {
        "cleared": cleared,
        "reproduced": k,
        "asked": n,
        "counted_by": RATIO if counted is None else by,
        "share_below": proportion_interval(k, n, level=level)[1],
        "level": "unjudged" if cleared is None else "reproduces" if proof else "inconclusive" if k else "none",
        "text": _text(cleared, proof, why, by=by, groups=groups),
        "reasons": [one.said() for one in why],
    }


def _counted_by(proof: Mapping[str, Mapping[str, Any]], recommended: str | None) -> str | None:
    """Return the measure that proves most pictures, or the recommended measure if none proves any."""
    proven = {name: sum(group["reproduced"] for group in groups.values()) for name, groups in proof.items()}
    return max(proven, key=lambda name: (proven[name], name == recommended)) if proven else recommended


def _trained(groups: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group for name, group in groups.items() if name not in (HELDOUT, MADE_CAPTION)}


def _proven(measure: Mapping[str, Any], level: float) -> dict[str, Any]:
    """Return the groups of which chance brings as many pictures back with a probability of at most `level`."""
    groups = _trained(measure["groups"])
    return {name: group for name, group in groups.items() if group["reproduced"] and group["probability"] <= level}


def _suspicious(
    name: str, measure: Mapping[str, Any], recommended: bool, proven: Mapping[str, Any] | None = None
) -> list[Reason]:
    """Give a reason for each group of which more pictures came back than expected by chance.

    The recommended measure gives one for any such group at risk. Every measure gives one for a group whose number alone
    would be a proof. The reason says so if the group is not in `proven`.
    """
    found = []
    for group, figures in _trained(measure["groups"]).items():
        alone = figures["reproduced"] > 0 and figures["probability"] <= PROOF
        more = recommended and group in AT_RISK and figures["reproduced"] > figures["expected"]
        if alone or more:
            said = (
                f"by {called(name)}, {figures['reproduced']} of {figures['n']} {in_words(group)} {kind_of(group)} came "
                f"back, {more_than_chance(figures['expected'], proof=group in (proven or {}))}"
            )
            found.append(Reason("may_be_copies", said, "look at the images, and raise --images_per_prompt"))
    return found


def _failed(name: str | None, control: Mapping[str, Any]) -> list[Reason]:
    """Give a reason if the controls of the recommended measure fail."""
    if control.get("hold") is not False:
        return []
    return [
        Reason(
            "control_failed",
            f"{control_words(str(name), control)}, so {name} cannot clear the model",
            "name another measure of copying (--copy_measures; --copy_detector FILE), or hold out pictures of the same "
            "kind",
        )
    ]


def control_words(name: str, control: Mapping[str, Any]) -> str:
    """Describe the results of the controls of a measure."""
    planted, unplanted = control["planted"], control["unplanted"]
    return (
        f"{name} found {planted['found']} of {planted['n']} planted copies, and mistook {unplanted['found']} of "
        f"{unplanted['n']} unseen pictures for copies"
    )


def _no_measure(copying: Mapping[str, Any]) -> list[Reason]:
    powers = [
        f"{name} finds {measure['power']['none']['share']:.0%}"
        for name, measure in copying["measures"].items()
        if measure["power"].get("none", {}).get("share") is not None
    ]
    found = "no measure of copying sees copies in these data at a known false-positive rate"
    said = f"{found} (plain copies: {joined(powers)})" if powers else found
    return [Reason("no_measure", said, "name a copy detector (--copy_detector FILE), or hold out more pictures")]


def _text(
    cleared: bool | None,
    proof: Mapping[str, Mapping[str, Any]],
    why: Sequence[Reason],
    *,
    by: str | None,
    groups: Mapping[str, Any],
) -> str:
    counted = f"By {called(by)}, {_counted(groups)}." if groups else ""
    if cleared is False:
        found = "; ".join(f"by {called(name)}, {_counted(shown)}" for name, shown in proof.items())
        return f"This model reproduces training images: {found}."
    if cleared is None:
        because = "; ".join(f"{one.found} ({one.remedy})" for one in why)
        return f"{UNJUDGED}: {because}. {counted}".rstrip()
    if any(group["reproduced"] for group in groups.values()):
        return f"The model may reproduce a few training images, but no more than chance explains: {counted}"
    ends = [f"below {group['interval'][1]:.0%} of {in_words(name)}" for name, group in groups.items()]
    said = f"With these numbers of pictures, the true share is {joined(ends)}."
    return f"The evaluation found no reproduction: {counted} {said}"


def _counted(groups: Mapping[str, Any]) -> str:
    parts = []
    for name, group in groups.items():
        chance = "" if group["expected"] is None else f" (by chance about {group['expected']:.1f})"
        parts.append(f"{group['reproduced']} of {group['n']} {in_words(name)} {kind_of(name)}{chance}")
    return f"{joined(parts)} came back for their own captions"
