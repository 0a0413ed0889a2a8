"""The figures of `metrics` as rows, for the screen and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

HEADINGS = ("figure", "of", "median", "MAD", "95% interval", "n")


def figure_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per figure and kind of prompts."""
    rows: list[tuple[str, ...]] = []
    for key, said in (("figures", ""), ("without", ", without the mitigation")):
        for name, kinds in results[key].items():
            for kind, found in kinds.items():
                if found["median"] is None:
                    continue
                values = (f"{found['median']:.4f}", f"{found['mad']:.4f}", _interval(found["interval"]))
                rows.append((f"{name}{said}", kind, *values, str(found["n"])))
    return rows


def distance_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per distance of all images."""
    rows: list[tuple[str, ...]] = []
    for name, found in results["quality"].items():
        if found.get("value") is not None:
            images = f"{found['n_generated']} to {found['n_real']}"
            rows.append((name.replace("_", " "), f"{found['value']:.4f}", _interval(found["interval"]), images))
    return rows


def sentences(results: Mapping[str, Any]) -> list[str]:
    """The images that were read or missing, and the basis of the figures."""
    read = results["images"]
    said = [f"{results['prompts']} prompts, {read['generated']} generations ({read['layout']})."]
    if results["split"]:
        said.append(f"Split by {results['split']}.")
    if (missing := read["prompts_without_original"]) and read["originals"]:
        said.append(
            f"{missing} of {results['prompts']} prompts have no original that can be read; they are left out of what "
            "compares with one."
        )
    if unread := read["unreadable"]:
        said.append(f"{len(unread)} files could not be read as images, first {unread[0]}.")
    said += [f"{name}: {found['note']}" for name, found in results["quality"].items() if found.get("note")][:1]
    return [*said, *(f"Not measured: {name} ({reason})." for name, reason in results["left_out"].items())]


def print_metrics(results: Mapping[str, Any]) -> None:
    """Print tables and sentences."""
    console = Console()
    table = Table(*HEADINGS)
    for row in figure_rows(results):
        table.add_row(*row)
    console.print(table)
    for row in distance_rows(results):
        console.print(": ".join((row[0], " ".join(row[1:]))) + " images", markup=False)
    for name, value in results["convention"].get("figures", {}).items():
        console.print(f"SSCD ({results['convention']['name']}), {name}: {value:.4f}", markup=False)
    for sentence in sentences(results):
        console.print(sentence, markup=False)


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
