"""Pictures of the report: each training image, the generations for its caption, and its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import thumbnail_uri
from memtrain.evaluation.report.shares import words
from memtrain.evaluation.stages.measure.charts import evidence
from memtrain.evaluation.stages.measure.evidence_curves import read_evidence_curves
from memtrain.files.inside import below
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    NEVER_TRAINED,
    PLANTED,
    REPEATED,
    SHARED_CAPTION,
    VARIED_CAPTIONS,
    VARIED_IMAGES,
)

ROWS = {
    PLANTED: 24,
    REPEATED: 24,
    SHARED_CAPTION: 12,
    VARIED_CAPTIONS: 12,
    VARIED_IMAGES: 12,
    FLAGGED: 24,
    EXCLUDED: 12,
    CANARY: 12,
}
"""Number of shown prompts by group, lowest ratio first."""
OTHER_ROWS = 6
"""Number of shown prompts of the groups that :data:`ROWS` does not name."""
IMAGES_PER_ROW = 4
"""Number of shown generations per prompt; the nearest ones, if there are more seeds."""
WORST = 8
"""Number of pictures with the nearest generations, shown at the beginning of the page."""
FAMILIES = 12
"""Number of pictures of several files that have rows of their own."""


def by_prompt(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group the rows of `samples.parquet` by prompt, with the lowest ratio as `best`, in the order of seeds."""
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = prompts.setdefault(row["key"], {**row, "generations": []})
        prompt["generations"].append(row)
    for prompt in prompts.values():
        prompt["best"] = min(row["ratio"] for row in prompt["generations"])
    return list(prompts.values())


def group_cases(prompts: Sequence[dict[str, Any]], group: str, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the cases of a group that are nearest to a copy, and the number of its prompts."""
    chosen = [prompt for prompt in prompts if prompt["group"] == group]
    shown = sorted(chosen, key=lambda prompt: prompt["best"])[: ROWS.get(group, OTHER_ROWS)]
    return [case(prompt, folder) for prompt in shown], len(chosen)


def worst_cases(prompts: Sequence[dict[str, Any]], folder: Path, *, measure: str | None) -> list[dict[str, Any]]:
    """Return the cases of the worst pictures: for each trained picture its worst prompt, and the curve of its evidence.

    Args:
        prompts: the prompts from :func:`by_prompt`.
        folder: the folder of the results.
        measure: the measure of copying that orders the pictures, if its similarities are recorded; else the ratio does.
    """
    curves, threshold = read_evidence_curves(folder)
    column = f"copy.{measure}.own"

    def order(prompt: Mapping[str, Any]) -> tuple[bool, float]:
        values = [row.get(column) for row in prompt["generations"]]
        numbers = [value for value in values if value is not None]
        reproduced = any(row["reproduced"] for row in prompt["generations"])
        return not reproduced, -max(numbers) if numbers else prompt["best"]

    chosen: list[dict[str, Any]] = []
    seen: set[str] = set()
    for prompt in sorted((one for one in prompts if one["group"] not in NEVER_TRAINED), key=order):
        # Another picture under the same caption would show the same generations again.
        names = {prompt.get("picture_family", prompt["key"]), "caption: " + prompt["caption"]}
        if not names & seen:
            chosen.append(prompt)
        seen |= names
    shown = []
    for number, prompt in enumerate(chosen[:WORST]):
        curve = Markup("")
        if len(curves.get(prompt["key"], ([], []))[0]) > 1:
            curve = evidence(*curves[prompt["key"]], threshold=threshold, name=f"evidence-{number}")
        shown.append(case(prompt, folder, curve=curve, measure=measure if measure != "ratio" else None))
    return shown


def family_cases(results: Mapping[str, Any], prompts: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the cases of the first families of the results, each with its nearest generation."""
    found = []
    for one in (results.get("families") or {}).get("asked", [])[:FAMILIES]:
        column = "caption_family" if one["group"] == SHARED_CAPTION else "picture_family"
        members = [prompt for prompt in prompts if (prompt["group"], prompt[column]) == (one["group"], one["name"])]
        if not members:
            continue
        prompt = min(members, key=lambda member: float(member["best"]))
        best = min(prompt["generations"], key=lambda row: float(row["ratio"]))
        shown = case({**prompt, "generations": [{**best, "reproduced": one["reproduced"]}]}, folder)
        found.append({**shown, "note": f"{one['files']} files · {words(one['group'])} · {one['name']}"})
    return found


def case(
    prompt: Mapping[str, Any], folder: Path, *, curve: Markup | None = None, measure: str | None = None
) -> dict[str, Any]:
    """Return the values of a prompt for `macros.html.j2`, with images as data URIs.

    Args:
        prompt: a prompt from :func:`by_prompt`.
        folder: the folder of the results.
        curve: the curve of the picture's evidence.
        measure: the measure of copying whose similarity stands beside the ratio.
    """
    best = sorted(prompt["generations"], key=lambda row: row["ratio"])[:IMAGES_PER_ROW]
    heldout = prompt["group"] in NEVER_TRAINED
    return {
        "own": thumbnail_uri(below(folder, prompt["own_image"], "own_image in samples.parquet")),
        "own_alt": f"{'own' if heldout else 'training'} image of: {prompt['caption']}",
        "own_said": "not trained on" if heldout else "training image",
        "caption": prompt["caption"],
        "note": " · ".join(_notes(prompt)),
        "curve": curve,
        "generations": [_generation(row, folder, measure) for row in sorted(best, key=lambda row: row["seed"])],
    }


def _generation(row: Mapping[str, Any], folder: Path, measure: str | None) -> dict[str, Any]:
    similarity = row.get(f"copy.{measure}.own") if measure else None
    said = f"{row['ratio']:.2f}" + (f" / {similarity:.2f}" if similarity is not None else "")
    alike = f", {words(measure)} {similarity:.2f}" if measure and similarity is not None else ""
    near = ", near by pixel distance" if row["reproduced"] else ""
    return {
        "uri": thumbnail_uri(below(folder, row["image"], "image in samples.parquet")),
        "alt": f"generation with seed {row['seed']}, ratio {row['ratio']:.2f}{alike}{near}",
        "said": said + (", near by pixel distance" if row["reproduced"] else ""),
        "reproduced": row["reproduced"],
        "elsewhere": row["nearest_key"] if _elsewhere(row) else "",
    }


def _notes(prompt: Mapping[str, Any]) -> list[str]:
    found = [words(prompt["group"]), prompt["key"]]
    flagged, step = prompt.get("training.flagged"), prompt.get("training.first_flagged_step")
    if flagged:
        found.append("flagged in training" + (f" from step {step}" if step is not None else ""))
    elif flagged is not None:
        found.append("not flagged in training")
    return found


def _elsewhere(row: Mapping[str, Any]) -> bool:
    """Whether the nearest training image is neither the prompt's own picture nor one with the same caption."""
    if "picture_family" not in row:
        own: str = row.get("template", row["key"])
        return own != row.get("nearest_template", row["nearest_key"])
    pictures, captions = ("picture_family", "nearest_picture_family"), ("caption_family", "nearest_caption_family")
    return all(row[own] != row[nearest] for own, nearest in (pictures, captions))
