"""What `detect` says in the report: from `detection.json` and `prompts.parquet`."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from memtrain.evaluation.report.section import Section, joined, made, notes, paragraph, results_of, table
from memtrain.evaluation.stages.detect.screen import HEADINGS, explanation, figure_rows, meaning

MOST = 30
"""Prompts listed, most suspicious first."""
WIDEST = 6
"""Detectors whose scores stand beside the prompts; the table of scores has all of them."""


def sections(folder: Path) -> list[Section]:
    """The figures of prompts whose truth is known, and the most suspicious prompts of all.

    Args:
        folder: of the results.
    """
    results = results_of(folder, "detection.json")
    if results is None:
        return []
    known = results["prompt_length"] is not None
    what = ", known to be memorized or not," if known else ""
    body = [paragraph(f"{results['prompts']} prompts{what} scored without looking at any training image.")]
    if known:
        headings = [heading.replace("\n", " ") for heading in HEADINGS]
        body += [table(("score", *headings), figure_rows(results)), notes(explanation(results))]
    else:
        body.append(paragraph(meaning(results)))
    scores = folder / "prompts.parquet"
    if scores.is_file():
        names = list(results["detectors"])[:WIDEST]
        first = names[0]
        direction = "descending" if results["detectors"][first]["higher_means_memorized"] else "ascending"
        rows = pq.read_table(scores).sort_by([(first, direction)]).slice(0, MOST).to_pylist()
        truth = {True: "yes", False: "no", None: "–"}
        cells = [(row["prompt"], truth[row["memorized"]], *(f"{row[name]:.4g}" for name in names)) for row in rows]
        spoken = [name.replace("_", " ") for name in names]
        body += [
            paragraph(f"The {len(rows)} most suspicious by {spoken[0]}:"),
            table(("prompt", "memorized", *spoken), cells),
        ]
    if left_out := results.get("left_out"):
        body.append(notes([f"Left out: {name}. {reason}" for name, reason in left_out.items()]))
    facts = made(results, "detect")
    return [Section(title="Detection of memorized prompts", body=joined(body), place=10, facts=facts)]
