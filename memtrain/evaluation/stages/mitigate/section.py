"""What `mitigate` says in the report: from `mitigation.json` and its sheet of images."""

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
    """The figures of each group of prompts without and with the mitigation, and the sheet.

    Args:
        folder: of the results.
    """
    results = results_of(folder, "mitigation.json")
    if results is None:
        return []
    what = f"{results['mitigation']}: every prompt sampled without and with it from the same noise."
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
    body.append(picture(folder / "mitigation.png", alt="Own images, images without and with the mitigation"))
    facts = made(results, "mitigate")
    return [Section(title="Mitigation while sampling", body=joined(body), place=20, facts=facts)]
