"""Figures of :mod:`memtrain.evaluation.measures.nemo_metrics`, as the report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import heading, joined, paragraph, table


def network_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A name, its value and how many prompts it is of, for each figure.

    Args:
        figures: metrics by name; one that is told apart for verbatim and template memorization has a row for each.
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
    """A Fréchet distance, and whether it is of too few images.

    Args:
        found: from :func:`memtrain.evaluation.measures.frechet.frechet_distance`.
    """
    few = "" if found["full_rank"] else ", fewer images than dimensions"
    return f"{found['value']:.3f} ({found['n_generated']} to {found['n_real']} images{few})"


def paired_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A name, its value without and with what was switched off, and how many prompts it is of, for each figure.

    Args:
        figures: metrics by name, with those of the images without under `without_mask`.
    """
    before = {name: value for name, value, _ in network_rows(figures.get("without_mask", {}))}
    return [(name, before.get(name, ""), value, count) for name, value, count in network_rows(figures)]


def paired_networks(networks: Mapping[str, Any]) -> Markup:
    """A table of the figures of each group without and with what was switched off.

    Args:
        networks: `networks` of a results file: `groups`, and where they could be measured `distribution_without` and
            `distribution_with`.
    """
    rows = [(name, *row) for name, found in networks["groups"].items() for row in paired_rows(found)]
    before, after = networks.get("distribution_without", {}), networks.get("distribution_with", {})
    rows += [("never trained on", name, distance(before[name]), distance(after[name]), "") for name in before]
    said = "Measured with the weight files that were named; comparable within one paper's convention only."
    return joined(
        [
            heading("Figures of networks"),
            table(("prompts", "figure", "without", "with", "n"), rows),
            paragraph(said),
        ]
    )
