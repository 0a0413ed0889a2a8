"""Sections of the report on measures of copying, counts, the curve over checkpoints, controls and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import (
    Section,
    folded,
    joined,
    notes,
    number,
    paragraph,
    percent,
    table,
)
from memtrain.evaluation.report.shares import interval_of, is_share, rows_of, share_text, value_text, words
from memtrain.evaluation.stages.measure.charts import checkpoints, roc, strip
from memtrain.evaluation.stages.measure.shown_exposure import exposure_tables
from memtrain.records import HELDOUT, NEVER_TRAINED

NAMES = {
    "kid": "KID",
    "fid": "FID",
    "kid_inception": "KID by Inception",
    "clip_fid": "CLIP-FID",
    "clip_score": "CLIP score",
    "diversity_clip": "diversity by CLIP",
}
"""Usual spelling of figures of quality."""
LONG = 20
"""Largest number of rows of a table that is not folded."""


def copying_section(results: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Make the section on measures of copying: their thresholds, their power for test copies, and their findings."""
    copying = results.get("copying")
    if not copying:
        return []
    measures: Mapping[str, Mapping[str, Any]] = copying["measures"]
    recommended = copying.get("recommended")
    body = []
    if recommended:
        body.append(paragraph(f"The recommended measure for these pictures is {recommended}."))
    blind = [name for name, one in measures.items() if one.get("sees") is False]
    if blind:
        body.append(
            paragraph(
                f"These measures do not see copies in these pictures, and cannot clear the model: {', '.join(blind)}."
            )
        )
    headings = ("measure", "sees copies here", "threshold", "false-positive rate", "upper bound of 95%",
                "held-out prompts", "copies of any picture", "generations alike")  # fmt: skip
    rows = [
        (
            name,
            value_text(one.get("sees")),
            number(one.get("threshold")),
            percent(one.get("false_positive_rate")),
            percent(one.get("rate_bound")),
            value_text(one.get("n_heldout")),
            share_text(one.get("nearest")),
            share_text(one.get("between")),
        )
        for name, one in measures.items()
    ]
    body.append(table(headings, rows, caption="Threshold and findings of each measure"))
    body += _by_measure(measures, "power", "edit", "Share of test copies that each measure finds, by kind of edit")
    body += _by_measure(measures, "groups", "pictures", "Pictures reproduced by each measure")
    body += _by_measure(measures, "train_to_train", "similarity of a training picture to its nearest other", "")
    body += _strips(measures, prompts, recommended)
    scores = {name: _scores(prompts, name) for name in measures}
    curves = roc(
        {name: found for name, found in scores.items() if found},
        name="roc-copying",
        what="pictures that were trained on against held-out pictures, by the most similar generation",
    )
    body.append(curves)
    if left_out := copying.get("left_out"):
        body.append(notes([f"Left out: {name}. {reason}" for name, reason in left_out.items()]))
    return [Section(title="Measures of copying", body=joined(body), place=4)]


def _by_measure(measures: Mapping[str, Mapping[str, Any]], key: str, first: str, caption: str) -> list[Markup]:
    """Make a table with a column for each measure."""
    held = {name: one.get(key) or {} for name, one in measures.items()}
    rows = list(dict.fromkeys(row for one in held.values() for row in one))
    if not rows:
        return []

    def cell(value: Any) -> str:
        return share_text(value) if is_share(value) else value_text(value)

    cells = [(words(str(row)), *(cell(one.get(row)) for one in held.values())) for row in rows]
    return [table((first, *held), cells, caption=caption or first.capitalize())]


def _strips(
    measures: Mapping[str, Mapping[str, Any]], prompts: Sequence[Mapping[str, Any]], recommended: str | None
) -> list[Markup]:
    """Chart the prompts against each measure's threshold, the recommended measure first."""
    shown: list[Markup] = []
    for number_, name in enumerate(sorted(measures, key=lambda one: one != recommended)):
        found, threshold = _scores(prompts, name), measures[name].get("threshold")
        if not found or threshold is None:
            continue
        groups: dict[str, list[float]] = {}
        for prompt in prompts:
            if (value := _most_alike(prompt, name)) is not None:
                groups.setdefault(prompt["group"], []).append(value)
        drawn = strip(groups, threshold, name=f"strip-{number_}", label=f"{words(name)}, best generation", higher=True)
        shown.append(drawn if not shown else folded(f"The same chart for {words(name)}", drawn))
    return shown


def _scores(prompts: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[bool]] | None:
    """Return the highest similarity of each prompt, and whether its picture was trained on."""
    values = [(_most_alike(prompt, name), prompt["group"]) for prompt in prompts]
    there = [(value, group not in NEVER_TRAINED) for value, group in values if value is not None]
    return ([value for value, _ in there], [trained for _, trained in there]) if there else None


def _most_alike(prompt: Mapping[str, Any], name: str) -> float | None:
    found = [row.get(f"copy.{name}.own") for row in prompt["generations"]]
    numbers = [float(value) for value in found if value is not None]
    return max(numbers) if numbers else None


def counts_section(results: Mapping[str, Any]) -> list[Section]:
    """Make the section of counts."""
    counts = results.get("counts")
    if not counts:
        return []
    # The kind of each prompt stays in the JSON file, and secrets have their own tables.
    plain = {
        name: {key: one for key, one in value.items() if key != "kinds"} if isinstance(value, Mapping) else value
        for name, value in counts.items()
        if name not in ("by_group", "exposure")
    }
    rows = [row for name, value in plain.items() for row in rows_of(words(name), value)]
    by = f", by {counts['measure']}" if counts.get("measure") else ""
    body = [table(("", "figure", "count; interval"), rows, caption=f"Counts with intervals{by}")]
    body += exposure_tables(counts.get("exposure") or {})
    if by_group := counts.get("by_group"):
        heading = ("group", "reproduced", "of", "share", "interval")
        cells = [
            (words(str(name)), one["reproduced"], one["n"], percent(one["share"]), interval_of(one.get("interval")))
            for name, one in sorted(by_group.items(), key=lambda item: -(item[1]["share"] or 0))
        ]
        caption = f"Reproduced pictures by group, by {counts.get('measure', 'ratio')}"
        shown = table(heading, cells, caption=caption)
        body.append(shown if len(cells) <= LONG else folded(f"Reproduced pictures by group ({len(cells)})", shown))
    return [Section(title="Counts", body=joined(body), place=5)]


def curve_section(results: Mapping[str, Any]) -> list[Section]:
    """Make the section on the pictures reproduced at each checkpoint."""
    curve = results.get("curve")
    if not curve:
        return []
    rows = [
        (
            one.get("checkpoint", ""),
            value_text(one.get("step")),
            value_text(one.get("reproduced")),
            value_text(one.get("n")),
            percent(one.get("share")),
            interval_of(one.get("interval")),
            value_text(one.get("heldout_loss")),
        )
        for one in curve
    ]
    headings = ("checkpoint", "step", "reproduced", "of", "share", "interval", "held-out loss")
    body = joined([checkpoints(curve), table(headings, rows, caption="Reproduced pictures by checkpoint")])
    return [Section(title="Checkpoints of the training", body=body, place=6)]


def controls_section(results: Mapping[str, Any]) -> list[Section]:
    """Make the section on controls: whether the evaluation finds planted copies, and no other pictures."""
    controls = results.get("controls")
    if not controls:
        return []
    said = (
        "The measures have to find planted copies of training pictures, and must not mistake unseen "
        "pictures for copies."
    )
    caption = "Planted copies and unseen pictures"
    if all(isinstance(one, Mapping) and is_share(one.get("planted")) for one in controls.values()):
        headings = ("measure", "planted copies found", "unseen pictures mistaken for copies", "controls hold")
        rows = [
            (name, share_text(one["planted"]), share_text(one.get("unplanted")), value_text(one.get("hold")))
            for name, one in controls.items()
        ]
        shown = table(headings, rows, caption=caption)
    else:
        shown = table(("control", "found", ""), list(rows_of("", controls)), caption=caption)
    body = joined([paragraph(said), shown])
    return [Section(title="Controls", body=body, place=7)]


def quality_section(results: Mapping[str, Any]) -> list[Section]:
    """Make the section on quality: each figure with its interval and the network that measured it."""
    quality = dict(results.get("quality") or {})
    if mean := quality.pop("heldout_loss_mean", None):
        quality["heldout_loss"] = mean  # the same number, with its interval
    named = {NAMES.get(name, words(name)): value for name, value in quality.items()}
    missing = {name: one["reason"] for name, one in named.items() if isinstance(one, Mapping) and one.get("reason")}
    rows = [row for name, value in named.items() if name not in missing for row in rows_of(name, value)]
    said = [f"{name} was not measured: {reason}." for name, reason in missing.items()]
    if any(name in named and name not in missing for name in ("KID", "FID")):
        said.append("Distances depend on the network that measures them. Compare distances by the same network only.")
    if not rows and not said:
        return []
    shown = table(("figure", "value", "interval; measured by"), rows, caption="Quality of the generations")
    return [Section(title="Quality", body=joined([*([shown] if rows else []), notes(said)]), place=7)]


def detector_curves(results: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> Markup:
    """Chart the ROC of the detectors for reproduced prompts, by the mean score of a prompt's images."""
    curves = {}
    for name, detector in (results.get("detectors") or {}).items():
        sign = 1 if detector["higher_means_memorized"] else -1
        values = []
        for prompt in prompts:
            found = [row.get(f"detector.{name}") for row in prompt["generations"]]
            numbers = [float(value) for value in found if value is not None]
            values.append(sign * sum(numbers) / len(numbers) if numbers else float("nan"))
        back = [any(row["reproduced"] for row in prompt["generations"]) for prompt in prompts]
        curves[name] = (values, back)
    if not any(prompt["group"] == HELDOUT for prompt in prompts):
        return Markup("")
    return roc(curves, name="roc-detectors", what="reproduced prompts against the others")
