"""Tables of the report for figures of :mod:`memtrain.evaluation.measures.nemo_metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import heading, joined, paragraph, table


def network_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Make a row of name, value and number of prompts for each figure.

    Args:
        figures: the metrics by name. A metric with separate values for verbatim and template memorization has a row
            for each.
    """
    rows = []
    for name, found in figures.items():
        if name in ("sscd_convention", "clip", "without_mask"):
            continue
        for part, value in found.items():
            if not isinstance(value, Mapping):
                rows.append((f"{name}, {part.replace('_', ' ')}", f"{value:.3f}", ""))
            elif value["n"] and value["median"] is not None:
                kind = "" if part == "all" else f", {part}"
                rows.append((f"{name}{kind}", f"{value['median']:.3f} ± {value['mad']:.3f}", str(value["n"])))
    return rows


def distance(found: Mapping[str, Any]) -> str:
    """Describe a Fréchet distance, and say if there were too few images.

    Args:
        found: the result of :func:`memtrain.evaluation.measures.frechet.frechet_distance`.
    """
    few = "" if found["full_rank"] else ", fewer images than dimensions"
    return f"{found['value']:.3f} ({found['n_generated']} to {found['n_real']} images{few})"


def paired_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Make a row of name, value without and with the mask, and number of prompts for each figure.

    Args:
        figures: the metrics by name; `without_mask` holds the metrics of the images without the mask.
    """
    before = {name: value for name, value, _ in network_rows(figures.get("without_mask", {}))}
    return [(name, before.get(name, ""), value, count) for name, value, count in network_rows(figures)]


def paired_networks(networks: Mapping[str, Any]) -> Markup:
    """Make a table of the figures of each group without and with the change.

    Args:
        networks: the part `networks` of a results file: `groups`, and if they could be measured `distribution_without`
            and `distribution_with`.
    """
    rows = [(name, *row) for name, found in networks["groups"].items() for row in paired_rows(found)]
    before, after = networks.get("distribution_without", {}), networks.get("distribution_with", {})
    rows += [("never trained on", name, distance(before[name]), distance(after[name]), "") for name in before]
    said = "The weight files of the command measured these figures. Compare figures of one paper's convention only."
    return joined(
        [
            heading("Figures by networks"),
            table(("prompts", "figure", "without", "with", "n"), rows),
            paragraph(said),
        ]
    )
