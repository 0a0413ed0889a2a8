"""The effect of a mitigation during sampling, on the screen: the figures as a table, and their meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_mitigation(results: Mapping[str, Any], folder: Path, *, console: Console | None = None) -> None:
    """Print what a mitigation changed, and what the figures mean.

    Args:
        results: content of `mitigation.json`.
        folder: where the files are.
        console: where to print; default the standard output.
    """
    console = console or Console()
    table = Table(title=f"{results['mitigation']}, without and with", title_justify="left")
    for column in ("prompts", "figure", "without", "with", "change"):
        table.add_column(column, justify="left" if column in ("prompts", "figure") else "right")
    for name, group in results["groups"].items():
        title = f"{name} ({group['prompts']})"
        for figure, cells in figure_rows(group, results["fidelity"]["measure"]):
            table.add_row(title, figure, *cells)
            title = ""
        table.add_section()
    console.print(table, markup=False)
    for sentence in explanation(results):
        console.print(sentence, markup=False, soft_wrap=True)
    seconds = results["seconds_per_image"]
    console.print(
        f"Seconds per image: {seconds['without']:.3f} without, {seconds['with']:.3f} with (ratio of paired batches "
        f"{seconds['ratio']:.2f}{_ends(seconds['ratio_interval'])}).",
        markup=False,
    )
    files = ("mitigation.png", "mitigation.parquet", "mitigation.json")
    names = ("Images", "Per image", "Figures")
    console.print(
        "   ".join(f"{name}: {folder / file}" for name, file in zip(names, files, strict=True)),
        markup=False,
        soft_wrap=True,
    )


def figure_rows(group: Mapping[str, Any], measure: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """The measured figures of a group as cells: a name, and the values without, with, and their change.

    Args:
        group: one of `groups` in `mitigation.json`.
        measure: how fidelity was measured.
    """
    before, after, change = group["without"], group["with"], group["change"]
    lines: list[tuple[str, tuple[str, ...]]] = []
    if before["reproduced"] is not None:
        counts = change["reproduced"]
        both = f"{counts['stopped']} stopped, {counts['started']} started"
        lines.append(("prompts reproduced", (_share(before["reproduced"]), _share(after["reproduced"]), both)))
    for name, title in (("diversity", "diversity"), ("fidelity", f"fidelity ({measure})")):
        if before[name] is not None:
            lines.append((title, tuple(_mean(part[name]) for part in (before, after, change))))
    lines.append(("distance to unmitigated", ("", _mean(group["distance_to_unmitigated"]), "")))
    return lines


def _share(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['k']} of {share['n']} ({low:.0%} to {high:.0%})"


def _mean(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.3f}{_ends(found['interval'])}"


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def explanation(results: Mapping[str, Any]) -> list[str]:
    """The notes for a reader of the figures, in sentences.

    Args:
        results: content of `mitigation.json`.
    """
    seeds, found = len(results["sampling"]["seeds"]), results["reproduction"]
    if "threshold" in found:
        said = [
            f"A prompt is reproduced if any of its {seeds} images is closer to its own image than "
            f"{found['threshold']:.2f} times its mean distance to the other prompts' images; {found['n_others']} "
            "prompts that are not memorized set that threshold at a false-positive rate of "
            f"{found['false_positive_rate']:.2g}."
        ]
    else:
        said = [f"Reproduction was not measured: {found['reason']}."]
    scale = results["distance_between_prompts"]
    if scale is not None:
        said.append(
            f"Distances and diversity are root mean square differences of pixels; images of different prompts are "
            f"{scale:.3f} apart."
        )
    fidelity = results["fidelity"]
    if fidelity["measure"] == "retrieved":
        said.append(
            f"Fidelity is the share of images that {fidelity['judge']} denoises better under their own prompt than "
            f"under each of {fidelity['others']} others (chance {fidelity['chance']:.2f}). For memorized prompts it "
            f"rewards copies."
        )
    elif fidelity["measure"] is None:
        said.append(f"Fidelity was not measured: {fidelity['reason']}.")
    said.append("In parentheses: 95 % intervals.")
    return said
