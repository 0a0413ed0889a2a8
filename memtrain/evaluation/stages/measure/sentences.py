"""What a verdict rests on and what it cannot say, in sentences that need no other part of the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtrain.evaluation.measures.copying.calibration import PLAIN
from memtrain.evaluation.stages.measure.decision import RATIO, control_words, trusted_measures
from memtrain.evaluation.stages.measure.verdict import in_words, joined
from memtrain.records import HELDOUT, MADE_CAPTION, NEVER_TRAINED

WEAK = 0.5
"""Share of copies with an edit below which a measure is said not to see that edit."""


def rests_on(results: Mapping[str, Any]) -> list[str]:
    """What the verdict of `results.json` rests on."""
    sampling, replication, copying = results["sampling"], results["replication"], results.get("copying")
    groups = {name: one for name, one in replication["groups"].items() if name not in NEVER_TRAINED}
    asked = [f"{one['n']}{_of(one)} {in_words(name)}" for name, one in groups.items()]
    said = [
        f"{joined(asked)} pictures were asked for by their own captions, with {len(sampling['seeds'])} images of "
        f"{sampling['steps']} steps for each."
    ]
    said.append(_null(replication))
    if not copying or copying["recommended"] is None:
        return [one for one in said if one]
    trusted = trusted_measures(copying)
    for name in sorted(trusted, key=lambda name: name != copying["recommended"]):
        said.append(_measure(name, trusted[name], recommended=name == copying["recommended"]))
    said.append(
        "Proof is what chance brings in less than 5 % of such evaluations, with all measures and groups of pictures "
        "together; what may be chance or not keeps from clearing the model."
    )
    return [one for one in said if one]


def cannot_say(results: Mapping[str, Any]) -> list[str]:
    """What the verdict of `results.json` cannot say."""
    sampling, replication, copying = results["sampling"], results["replication"], results.get("copying")
    seeds = len(sampling["seeds"])
    said = [
        f"Whether a picture comes back less often than about once in {seeds} images: {seeds} were sampled for each "
        "prompt.",
        "Whether pictures come back for captions that were not asked for, nor what a picture teaches beyond its copy "
        "(a style, a face in another pose).",
    ]
    left = {
        name: one["of"] - one["n"]
        for name, one in replication["groups"].items()
        if name not in NEVER_TRAINED and one.get("of", 0) > one["n"]
    }
    if left:
        parts = [f"{number} {in_words(name)}" for name, number in left.items()]
        said.append(
            f"Anything of the {joined(parts)} pictures that were not asked for, beyond the interval of the share."
        )
    if replication.get("calibrated_by") == MADE_CAPTION:
        said.append(
            "What comes by chance with pictures of the same kind that the model has not seen: none were held out, and "
            "the threshold rests on captions that were made of the data's words."
        )
    elif (results.get("config") or {}).get("heldout"):
        said.append(
            "Whether the held-out pictures are of the same kind as the others: if they are not, what is alike by kind "
            "may count as a copy, or a copy as chance."
        )
    if copying:
        said += _unseen_edits(copying)
        named = [name for name in copying["measures"] if name not in trusted_measures(copying)]
        if named:
            said.append(
                f"Anything by {joined(named)}: of copies of these pictures, too few are told from chance by it."
            )
        failed = {name: one for name, one in (results.get("controls") or {}).items() if one.get("hold") is False}
        said += [
            f"That there are no copies, by {name}: {control_words(name, one)}."
            for name, one in failed.items()
            if name not in named
        ]
    return said


def _null(replication: Mapping[str, Any]) -> str:
    if replication["false_positive_rate"] is None:
        return ""
    made = replication.get("calibrated_by") == MADE_CAPTION
    prompts = "captions made of the data's words" if made else "held-out prompts"
    return (
        f"What comes by chance is known from {replication['n_heldout']} {prompts}, at a false-positive rate of "
        f"{replication['false_positive_rate']:.1%}."
    )


def _measure(name: str, measure: Mapping[str, Any], *, recommended: bool) -> str:
    """What a measure found, and how well it sees."""
    power = measure["power"]
    edited = [one["share"] for edit, one in power.items() if edit != PLAIN and one.get("share") is not None]
    sees = f"which finds {power[PLAIN]['share']:.0%} of plain copies of these pictures"
    if edited:
        sees += f" and {sum(edited) / len(edited):.0%} of edited ones"
    groups = [one for group, one in measure["groups"].items() if group not in (*NEVER_TRAINED, HELDOUT)]
    back, n = sum(one["reproduced"] for one in groups), sum(one["n"] for one in groups)
    chance = sum(one["expected"] or 0.0 for one in groups)
    called = "the ratio of pixel distances" if name == RATIO else name
    counted = f"{back} of {n} pictures come back, where chance brings about {chance:.1f}"
    return f"By {called}{' (recommended)' if recommended else ''}, {sees}, {counted}."


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
        f"Whether pictures come back edited like this, of which {copying['recommended']} finds few: {joined(weak)}."
    ]


def _of(group: Mapping[str, Any]) -> str:
    return f" (of {group['of']})" if group.get("of", group["n"]) > group["n"] else ""
