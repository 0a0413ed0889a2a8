"""The first screen of the report: the answer whether the model may be released, its basis and its limits.

The screen is made from `results.json` alone, of any version. Figures that an older file lacks are computed from the
others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.evaluation.report.section import KeyFigure
from memtrain.evaluation.report.shares import note_of, percent_of, value_text, words
from memtrain.evaluation.stages.measure.decision import RATIO, called
from memtrain.evaluation.stages.measure.verdict import UNJUDGED
from memtrain.functional.ranking import proportion_interval

WORDS = {
    "reproduces": "May it be released? Not as it is.",
    "unjudged": f"May it be released? {UNJUDGED}.",
    "inconclusive": "May it be released? Look at the images first. The pictures that came back may be chance.",
    "none": "May it be released? No finding speaks against it.",
}
"""Words of each level of the verdict for the person who must decide."""

LONG = 160
"""Number of characters above which a headline is cut after its first part."""


def answer(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict for the page: `level`, `word`, one sentence as `text`, and the rest as `more`."""
    found = results["verdict"]
    text, more = first_sentence(found["text"])
    if len(text) > LONG and "; " in text:
        # The sentence has a part for each measure. The first part is the headline.
        text, _, rest = text.partition("; ")
        text, more = f"{text}.", f"Also {rest} {more}".strip()
    reasons = found.get("reasons") or []
    if found["level"] == "unjudged" and reasons:
        count = len(reasons)
        ground = "The reason" if count == 1 else f"The first of {count} reasons"
        text = f"{ground}: {reasons[0]['found']}."
        more = " ".join(f"Further reason: {one['found']}." for one in reasons[1:])
    return {"level": found["level"], "word": WORDS.get(found["level"], ""), "text": text, "more": more}


def first_sentence(text: str) -> tuple[str, str]:
    """Split a text into its first sentence and the rest."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])", text.strip(), maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else ""


def rests_on(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the basis of the verdict."""
    if (said := results["verdict"].get("rests_on")) is not None:
        return list(said)
    replication, seeds = results["replication"], len(results["sampling"]["seeds"])
    pictures = results["verdict"].get("asked") or sum(_trained(replication["groups"], "n"))
    found = [
        f"The evaluation sampled {pictures} training pictures by their captions, with {seeds} "
        f"{'image' if seeds == 1 else 'images'} each."
    ]
    if replication["false_positive_rate"] is None:
        found.append("No held-out prompts set the threshold, so its false-positive rate is not known.")
    else:
        found.append(
            f"{replication['n_heldout']} held-out prompts set the threshold. Another held-out prompt counts as "
            f"reproduced with a probability of at most {percent_of(replication['false_positive_rate'])}."
        )
    families = results.get("families") or {}
    if families.get("known"):
        found.append(f"Copies with another name are known: {families['pictures']} pictures have several files.")
    return found


def cannot_say(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the limits of the verdict."""
    if (said := results["verdict"].get("cannot_say")) is not None:
        return list(said)
    return [
        "The evaluation did not try other pictures, seeds, guidance scales or wordings.",
        "The pixel ratio does not see copies that are shifted, mirrored, recoloured or partial.",
        "The evaluation did not try adversarial prompts or embeddings, which may bring a picture back.",
    ]


def key_figures(results: Mapping[str, Any]) -> list[KeyFigure]:
    """Return the figures that a reader looks for first, each with its interval."""
    figures = [_pictures(results)]
    counts, copying = results.get("counts") or {}, results.get("copying") or {}
    if generations := counts.get("generations"):
        note = _by(note_of(generations), counts.get("measure"))
        figures.append(KeyFigure("generations that are copies", percent_of(generations["share"]), note))
    name = copying.get("recommended")
    measure = copying.get("measures", {}).get(name)
    if measure:
        figures += _measure(str(name), measure)
    else:
        figures.append(_ratio(results["replication"]))
    quality = results.get("quality") or {}
    if (loss := quality.get("heldout_loss_mean") or quality.get("heldout_loss")) is not None:
        figures.append(_value("held-out loss", loss))
    for name in ("fid", "kid", "clip_score"):
        found = quality.get(name)
        if isinstance(found, Mapping) and found.get("value") is not None:
            figures.append(_value(words(name).upper() if name != "clip_score" else "CLIP score", found))
    return figures


def _pictures(results: Mapping[str, Any]) -> KeyFigure:
    """Return the share of training pictures that come back."""
    counts = results.get("counts") or {}
    found, by = counts.get("pictures"), counts.get("measure")
    if not found:
        by = results["verdict"].get("counted_by", RATIO)
        verdict, groups = results["verdict"], results["replication"]["groups"]
        n = verdict.get("asked", sum(_trained(groups, "n")))
        k = verdict.get("reproduced", sum(_trained(groups, "reproduced")))
        level = results["statistics"]["level"]
        ends = list(proportion_interval(k, n, level=level)) if n else None
        found = {"n": n, "reproduced": k, "share": k / n if n else None, "interval": ends}
    return KeyFigure("training pictures that come back", percent_of(found["share"]), _by(note_of(found), by))


def _by(note: str, measure: str | None) -> str:
    """Add the name of the measure to the note of a figure."""
    return note if measure is None else f"{note}; by {called(measure)}"


def _trained(groups: Mapping[str, Mapping[str, Any]], name: str) -> list[int]:
    return [group[name] for group_name, group in groups.items() if group_name not in ("heldout", "excluded")]


def _measure(name: str, measure: Mapping[str, Any]) -> list[KeyFigure]:
    """Return the power and the false-positive rate of the recommended measure."""
    figures = []
    power = [one["share"] for one in (measure.get("power") or {}).values() if one and one.get("share") is not None]
    if power:
        ends = f"{100 * min(power):.0f} to {100 * max(power):.0f}%"
        note = f"by {name}, from the hardest to the easiest kind of edit"
        figures.append(KeyFigure("test copies found", ends, note))
    if (rate := measure.get("false_positive_rate")) is not None:
        bound = measure.get("rate_bound")
        note = f"{measure.get('n_heldout', '?')} held-out prompts" + (f"; below {percent_of(bound)}" if bound else "")
        figures.append(KeyFigure("false-positive rate at most", percent_of(rate), note))
    return figures


def _ratio(replication: Mapping[str, Any]) -> KeyFigure:
    rate = replication["false_positive_rate"]
    note = f"by the pixel ratio, from {replication.get('n_heldout', 0)} held-out prompts"
    return KeyFigure("false-positive rate at most", percent_of(rate) if rate is not None else "not known", note)


def _value(label: str, found: Any) -> KeyFigure:
    if not isinstance(found, Mapping):
        return KeyFigure(label, value_text(found))
    ends: Sequence[float] | None = found.get("interval")
    backend = found.get("backend") or found.get("features")
    parts = [f"{value_text(ends[0])} to {value_text(ends[1])}"] if ends and None not in ends else []
    return KeyFigure(label, value_text(found.get("value")), "; ".join([*parts, *([str(backend)] if backend else [])]))
