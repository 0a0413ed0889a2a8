"""Basis and limits of a verdict, in sentences that need no other part of the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtrain.evaluation.measures.copying.calibration import PLAIN
from memtrain.evaluation.stages.measure.decision import called, control_words, trusted_measures
from memtrain.evaluation.stages.measure.verdict import in_words, joined
from memtrain.records import HELDOUT, MADE_CAPTION, NEVER_TRAINED

WEAK = 0.5
"""Share of found copies with an edit below which the sentences say that a measure misses this edit."""


def rests_on(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the basis of the verdict of `results.json`."""
    sampling, replication, copying = results["sampling"], results["replication"], results.get("copying")
    groups = {name: one for name, one in replication["groups"].items() if name not in NEVER_TRAINED}
    asked = [f"{one['n']}{_of(one)} {in_words(name)}" for name, one in groups.items()]
    said = [
        f"The evaluation sampled {joined(asked)} pictures by their own captions, with "
        f"{_number(len(sampling['seeds']), 'image')} of {_number(sampling['steps'], 'step')} each."
    ]
    said.append(_null(replication))
    if not copying or copying["recommended"] is None:
        return [one for one in said if one]
    trusted = trusted_measures(copying)
    for name in sorted(trusted, key=lambda name: name != copying["recommended"]):
        said.append(_measure(name, trusted[name], recommended=name == copying["recommended"]))
    said.append(
        "A finding is a proof if chance makes it in less than 5 % of such evaluations, over all measures and groups of "
        "pictures together. A finding that may be chance proves nothing, and keeps the model from being cleared."
    )
    return [one for one in said if one]


def cannot_say(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the limits of the verdict of `results.json`."""
    sampling, replication, copying = results["sampling"], results["replication"], results.get("copying")
    seeds = len(sampling["seeds"])
    said = [
        f"The evaluation sampled {_number(seeds, 'image')} for each prompt. It can miss pictures that come back less "
        f"often than about once in {_number(seeds, 'image')}.",
        "The evaluation did not try other captions. It does not measure what the model learned beyond copies, "
        "such as a style or a face in another pose.",
    ]
    left = {
        name: one["of"] - one["n"]
        for name, one in replication["groups"].items()
        if name not in NEVER_TRAINED and one.get("of", 0) > one["n"]
    }
    if left:
        parts = [f"{number} {in_words(name)}" for name, number in left.items()]
        said.append(
            f"The evaluation did not sample the captions of {joined(parts)} pictures. Only the interval of the share "
            f"covers them."
        )
    if replication.get("calibrated_by") == MADE_CAPTION:
        said.append(
            "The false-positive rate for unseen pictures of the same kind is not known. No pictures were held out, and "
            "the threshold rests on captions made from the data's words."
        )
    elif (results.get("config") or {}).get("heldout"):
        said.append(
            "The evaluation assumes that the held-out pictures are of the same kind as the others. If they are not, "
            "pictures that are alike by kind may count as copies, or copies as chance."
        )
    if copying:
        said += _unseen_edits(copying)
        named = [name for name in copying["measures"] if name not in trusted_measures(copying)]
        if named:
            said.append(
                f"The verdict does not use {joined(named)}, which separate too few copies of these pictures "
                f"from chance."
            )
        failed = {name: one for name, one in (results.get("controls") or {}).items() if one.get("hold") is False}
        said += [
            f"{name} cannot exclude copies, because {control_words(name, one)}."
            for name, one in failed.items()
            if name not in named
        ]
    return said


def _null(replication: Mapping[str, Any]) -> str:
    if replication["false_positive_rate"] is None:
        return ""
    made = replication.get("calibrated_by") == MADE_CAPTION
    prompts = "captions made from the data's words" if made else "held-out prompts"
    return (
        f"The threshold comes from {replication['n_heldout']} {prompts}, at a false-positive rate of "
        f"{replication['false_positive_rate']:.1%}."
    )


def _measure(name: str, measure: Mapping[str, Any], *, recommended: bool) -> str:
    """Describe what a measure found, and which share of copies it finds."""
    power = measure["power"]
    edited = [one["share"] for edit, one in power.items() if edit != PLAIN and one.get("share") is not None]
    sees = f"It finds {power[PLAIN]['share']:.0%} of plain copies of these pictures"
    if edited:
        sees += f" and {sum(edited) / len(edited):.0%} of edited copies"
    groups = [one for group, one in measure["groups"].items() if group not in (*NEVER_TRAINED, HELDOUT)]
    back, n = sum(one["reproduced"] for one in groups), sum(one["n"] for one in groups)
    chance = sum(one["expected"] or 0.0 for one in groups)
    counted = f"{back} of {n} pictures come back, and about {chance:.1f} are expected by chance"
    return f"By {called(name)}{' (recommended)' if recommended else ''}, {counted}. {sees}."


def _unseen_edits(copying: Mapping[str, Any]) -> list[str]:
    measure = copying["measures"].get(copying["recommended"])
    if measure is None:
        return []
    weak = [
        f"{in_words(edit)} ({one['share']:.0%})"
        for edit, one in measure["power"].items()
        if one.get("share") is not None and one["share"] < WEAK
    ]
    if not weak:
        return []
    return [
        f"By {copying['recommended']}, the evaluation can miss pictures that come back with these edits (share found): "
        f"{joined(weak)}."
    ]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _of(group: Mapping[str, Any]) -> str:
    return f" (of {group['of']})" if group.get("of", group["n"]) > group["n"] else ""
