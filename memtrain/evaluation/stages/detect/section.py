"""Section of `detect` in the report, made from `detection.json` and `prompts.parquet`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import (
    KeyFigure,
    Section,
    folded,
    joined,
    made,
    notes,
    paragraph,
    percent,
    results_of,
    table,
)
from memtrain.evaluation.stages.detect.against_null import CANNOT_SAY, sentences
from memtrain.evaluation.stages.detect.screen import (
    HEADINGS,
    by_suspicion,
    counted,
    explanation,
    figure_rows,
    meaning,
    spoken,
)
from memtrain.files.parquet_table import read_parquet

MOST = 30
"""Number of listed prompts, most suspicious first."""
WIDEST = 6
"""Number of detectors whose scores stand beside the prompts; `prompts.parquet` has the scores of all detectors."""


def sections(folder: Path) -> list[Section]:
    """Make the section: results against null prompts, the most suspicious prompts, and figures of known prompts.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder, "detection.json")
    if results is None:
        return []
    known, null = results["prompt_length"] is not None, results.get("null")
    what = ", known to be memorized or not," if known else ""
    body = [
        paragraph(f"The detectors scored {results['prompts']} prompts{what} without looking at any training image.")
    ]
    said = sentences(results)
    if said:
        body += [paragraph(said[0]), notes(said[1:])]
    elif not known:
        body.append(paragraph(meaning(results)))
    if (scores := folder / "prompts.parquet").is_file():
        body.append(_prompts(results, scores))
    if null is not None and null["detectors"]:
        body.append(_by_detector(null))
    if known:
        headings = [heading.replace("\n", " ") for heading in HEADINGS]
        measured = table(("score", *headings), figure_rows(results), caption="Memorized prompts against other prompts")
        body += [measured, notes(explanation(results))]
    body.append(notes([*counted(results), *_left_out(results)]))
    return [
        Section(
            title="Detection of memorized prompts",
            body=joined(body),
            place=10,
            verdict=_verdict(results, said) if said and null is not None and null["combined"] else None,
            rests_on=said[1:],
            cannot_say=CANNOT_SAY if said else (),
            figures=_figures(results) if said and null is not None and null["combined"] else (),
            subject=str(results.get("model") or ""),
            facts=made(results, "detect"),
        )
    ]


def _verdict(results: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
    return {"level": "plain", "word": "Which prompts stand out?", "text": said[0]}


def _figures(results: Mapping[str, Any]) -> list[KeyFigure]:
    null = results["null"]
    found = null["combined"]
    return [
        KeyFigure(
            "prompts that stand out", f"{found['q_below_level']} of {results['prompts']}", f"q < {null['level']:g}"
        ),
        KeyFigure("null prompts", str(null["prompts"]), f"smallest p {null['smallest_p_value']:.2g}"),
        KeyFigure(
            "above the median of the null prompts",
            percent(found["above_median"]["share"]),
            "half, if no prompt stands out",
        ),
    ]


def _prompts(results: dict[str, Any], path: Path) -> Markup:
    """Make the table of the most suspicious prompts, with p-values before scores."""
    title, ordered = by_suspicion(
        results, read_parquet(path, needed=("prompt", "memorized"), remedy="run detect again")
    )
    names = list(results["detectors"])[:WIDEST]
    rows = ordered.slice(0, MOST).to_pylist()
    has_p = "p_value" in ordered.column_names
    repeats = any(row.get("count", 1) > 1 for row in rows)
    known = any(row["memorized"] is not None for row in rows)
    truth = {True: "yes", False: "no", None: "–"}
    headings = [
        "prompt",
        *(["p", "q"] if has_p else []),
        *(["times given"] if repeats else []),
        *(["memorized"] if known else []),
        *map(spoken, names),
    ]
    cells = [
        (
            row["prompt"],
            *([f"{row['p_value']:.3g}", f"{row['q_value']:.3g}"] if has_p else []),
            *([row["count"]] if repeats else []),
            *([truth[row["memorized"]]] if known else []),
            *(f"{row[name]:.4g}" for name in names),
        )
        for row in rows
    ]
    return table(headings, cells, caption=f"The {len(rows)} most suspicious prompts, by {title}")


def _by_detector(null: Mapping[str, Any]) -> Markup:
    """Make the table of the numbers of prompts that each detector alone names."""
    level = f"{null['level']:g}"
    rows = [
        (
            spoken(name),
            found["q_below_level"],
            found["holm_below_level"],
            found["p_at_most_level"],
            percent(found["above_median"]["share"]),
        )
        for name, found in (*null["detectors"].items(), ("together", null["combined"]))
    ]
    headings = ("detector", f"q < {level}", f"Holm < {level}", f"p ≤ {level}", "above the median of the null")
    return folded(
        "Results of each detector alone", table(headings, rows, caption="Prompts that stand out, by detector")
    )


def _left_out(results: Mapping[str, Any]) -> list[str]:
    found = [f"Left out: {name}. {reason}." for name, reason in results.get("left_out", {}).items()]
    null = results.get("null") or {}
    return found + [f"No p-value by {spoken(name)}: {why}." for name, why in null.get("left_out", {}).items()]
