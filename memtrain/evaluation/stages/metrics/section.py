"""Section of `metrics` in the report: its figures, and the missing ones."""

from __future__ import annotations

from pathlib import Path

from memtrain.evaluation.report.section import Section, heading, joined, made, notes, results_of, table
from memtrain.evaluation.stages.metrics.screen import HEADINGS, distance_rows, figure_rows, sentences


def sections(folder: Path) -> list[Section]:
    """Make the section on the figures per kind of prompts, and on distances over all images.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder, "metrics.json")
    if results is None:
        return []
    body = [table(HEADINGS, figure_rows(results), caption="Figures over prompts")]
    if rows := distance_rows(results):
        body += [heading("Distances to real images"), table(("distance", "value", "interval", "images"), rows)]
    if found := results["convention"].get("figures"):
        named = f"SSCD as {results['convention']['name']} reports it"
        body += [heading(named), table(("figure", "value"), [(key, f"{value:.4f}") for key, value in found.items()])]
    body.append(notes(sentences(results)))
    return [Section(title="Measures of folders of images", body=joined(body), place=25, facts=made(results, "metrics"))]
