"""Section of `mitigate` in the report, made from `mitigation.json` and its sheet of images."""

from __future__ import annotations

from pathlib import Path

from memtrain.evaluation.report.section import (
    Section,
    heading,
    joined,
    made,
    notes,
    paragraph,
    picture,
    results_of,
    table,
)
from memtrain.evaluation.stages.mitigate.screen import explanation, figure_rows
from memtrain.evaluation.stages.network_figures import paired_networks


def sections(folder: Path) -> list[Section]:
    """Make the section on each group of prompts without and with the mitigation, with the sheet.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder, "mitigation.json")
    if results is None:
        return []
    what = f"Every prompt is sampled without and with {results['mitigation']}, from the same noise."
    body = [paragraph(what)]
    for name, group in results["groups"].items():
        rows = [(figure, *cells) for figure, cells in figure_rows(group, results["fidelity"]["measure"])]
        body += [
            heading(f"{name} prompts ({group['prompts']})"),
            table(("", "without", "with", "change"), rows),
        ]
    body.append(notes(explanation(results)))
    if networks := results.get("networks"):
        body.append(paired_networks(networks))
    body.append(picture(folder / "mitigation.png", alt="Own images, and images without and with the mitigation"))
    facts = made(results, "mitigate")
    return [Section(title="Mitigation while sampling", body=joined(body), place=20, facts=facts)]
