"""The results of a detection on the screen, for a reader who has never run one."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memtrain.evaluation.stages.detect.against_null import CANNOT_SAY, sentences
from memtrain.files.shown import shown

COLUMN = 13
"""Characters of a detector's column; as many detectors as there is room for stand beside the prompts."""


def print_detection(
    results: dict[str, Any], table: pa.Table, folder: Path, *, most: int = 15, console: Console | None = None
) -> None:
    """Print the most suspicious prompts, how good the detectors are where that is known, and what it means.

    Args:
        results: content of `detection.json`.
        table: content of `prompts.parquet`.
        folder: where the files are.
        most: prompts shown.
        console: where to print; default the standard output.
    """
    console = console or Console()
    _print_prompts(results, table, most, console)
    for line in sentences(results):
        console.print(line, markup=False, soft_wrap=True)
    if results.get("null") is not None:
        for line in CANNOT_SAY:
            console.print(f"Note: {line}", markup=False, soft_wrap=True)
    if results["prompt_length"] is not None:
        _print_figures(results, console)
    elif results.get("null") is None:
        console.print(meaning(results), markup=False, soft_wrap=True)
    for line in counted(results):
        console.print(line, markup=False, soft_wrap=True)
    count = results["prompts"]
    console.print(
        f"{count} prompt{'s' if count > 1 else ''}, {results['seconds_per_prompt']:.2f} s each. "
        f"Scores: {folder / 'prompts.parquet'}   Figures: {folder / 'detection.json'}",
        markup=False,
        soft_wrap=True,
    )


def counted(results: dict[str, Any]) -> list[str]:
    """The changes to prompts on the way; `results` is the content of `detection.json`."""
    lines = []
    if repeated := results.get("repeated_prompts"):
        lines.append(f"{repeated} row(s) repeat an earlier prompt; each prompt is scored and counted once.")
    if cut := results.get("truncated_prompts"):
        lines.append(f"{cut} prompt(s) are longer than the text encoder reads and were cut.")
    return lines


def by_suspicion(results: dict[str, Any], table: pa.Table) -> tuple[str, pa.Table]:
    """By what the most suspicious prompts come first, in words, and the table in that order.

    Args:
        results: content of `detection.json`.
        table: content of `prompts.parquet`.
    """
    first = next(iter(results["detectors"]))
    if "p_value" in table.column_names:
        first = next(iter(results["null"]["detectors"]))
    order = [(first, "descending" if results["detectors"][first]["higher_means_memorized"] else "ascending")]
    if "p_value" in table.column_names:
        return "p-value", table.sort_by([("p_value", "ascending"), *order])
    return spoken(first), table.sort_by(order)


def spoken(name: str) -> str:
    """A detector's name as it is read."""
    return name.replace("_", " ")


def _print_prompts(results: dict[str, Any], table: pa.Table, most: int, console: Console) -> None:
    title, ordered = by_suspicion(results, table)
    known = results["prompt_length"] is not None
    names = list(results["detectors"])[: max(1, (console.width - 44) // COLUMN)]
    leading = (["memorized"] if known else []) + (["p", "q"] if "p_value" in table.column_names else [])
    screen = Table(title=f"Prompts by {title}, most suspicious first", title_justify="left", box=SIMPLE_HEAD)
    screen.add_column("prompt", no_wrap=True)
    for heading in leading + names:
        screen.add_column(spoken(heading), justify="right", max_width=COLUMN - 2)
    room = max(20, console.width - 4 - COLUMN * len(names) - 9 * len(leading))
    for row in ordered.slice(0, most).to_pylist():
        cells = ["yes" if row["memorized"] else "no"] if known else []
        if "p_value" in row:
            cells += [f"{row['p_value']:.3g}", f"{row['q_value']:.3g}"]
        times = f" (×{row['count']})" if row["count"] > 1 else ""
        text = shorten(shown(row["prompt"], most=1000), room - len(times), placeholder="...") + times
        screen.add_row(escape(text), *cells, *(f"{row[name]:.4g}" for name in names))
    console.print(screen)
    if len(table) > most:
        console.print(f"... and {len(table) - most} more in prompts.parquet.\n")


def meaning(results: dict[str, Any]) -> str:
    """The meaning of scores of prompts about which nothing is known; `results` is the content of `detection.json`."""
    text = (
        "What this says: a memorized prompt pulls the model towards one image, harder than others do, and most "
        "detectors score it higher for that. "
    )
    if results["prompts"] == 1:
        text += "One score alone shows nothing: there is none from which on a prompt is memorized. "
    return text + (
        "Scores depend on model, guidance and steps, so they are comparable within this table only. With --null auto "
        "each prompt is compared with prompts of its kind that the model cannot have seen, and gets a p-value. With a "
        "column `memorized` (0 or 1) in the file the detectors are measured, too."
    )


HEADINGS = ("ranked\nright", "95 %\ninterval", "same\nlength", "found,\n1 % wrong", "found,\n3 % wrong", "calls")
"""The names of the columns of :func:`figure_rows`, after the name of the score."""


def figure_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of scores, as text: a name, and what :data:`HEADINGS` says.

    Args:
        results: content of `detection.json` of prompts about which the truth is known.
    """
    rows: list[tuple[str, ...]] = []
    for name, figures in _scores(results).items():
        calls = str(figures.get("denoiser_calls", ""))
        if figures["auroc"] is None:
            rows.append((name.replace("_", " "), "none", "", "", "", "", calls))
            continue
        low, high = figures["interval"]
        same = figures.get("same_length", {}).get("auroc")
        rates = [f"{rate['strict']:.2f}/{rate['nearest']:.2f}" for rate in figures["true_positive_rates"]]
        shown = [f"{figures['auroc']:.3f}", f"{low:.2f}–{high:.2f}", "" if same is None else f"{same:.3f}"]
        rows.append((name.replace("_", " "), *shown, *rates, calls))
    return rows


def explanation(results: dict[str, Any]) -> list[str]:
    """The notes for a reader of the table of scores, in sentences; `results` as for :func:`figure_rows`."""
    shared: dict[str, Any] = next(iter(results["detectors"].values())).get("same_length", {})
    if shared.get("auroc") is None:
        among = f"Same length: {shared.get('reason', 'not measured')}."
    else:
        among = (
            f"Same length: {shared['memorized']} memorized and {shared['others']} other prompts that share a length, "
            "compared within it."
        )
    lines = [
        "Ranked right: how often a memorized prompt scores higher than one that is not (the area under the ROC curve; "
        "0.5 is chance). Found: share of the memorized prompts above a threshold that lets so many of the others by, "
        "in both ways that papers read it: fewer than that share by / nearest to that share. "
        f"{among} Calls: of the denoiser, per prompt. A score that the prompts' length explains is no detection."
    ]
    best = (results["combined"] or {}).get("best_single")
    if best is not None:
        low, high = best["interval"]
        lines.append(
            f"Combined: all detectors weighted together, each prompt by weights from the other "
            f"{results['combined']['folds'] - 1} of {results['combined']['folds']} parts of the prompts. The best "
            f"single detector, chosen in the same way ({', '.join(best['chosen'])}), has {best['auroc']:.3f}; "
            f"difference {best['difference']:+.3f} ({low:+.3f} to {high:+.3f})."
        )
    rows = _scores(results)
    lines += [
        f"{name.replace('_', ' ')} is not measured: {figures['reason']}."
        for name, figures in rows.items()
        if figures["auroc"] is None
    ]
    notes = dict.fromkeys(note for figures in rows.values() for note in figures.get("notes", []))
    return [*lines, *(f"Note: {note}" for note in notes)]


def _scores(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {**results["detectors"], "combined": results["combined"], "prompt length": results["prompt_length"]}


def _print_figures(results: dict[str, Any], console: Console) -> None:
    screen = Table(title="Memorized against other prompts", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    screen.add_column("score", no_wrap=True)
    for heading in HEADINGS:
        screen.add_column(heading, justify="right", no_wrap=True)
    for row in figure_rows(results):
        screen.add_row(*row)
    console.print(screen)
    for line in explanation(results):
        console.print(line, soft_wrap=True, markup=False)
