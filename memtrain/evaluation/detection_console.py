"""What a detection found, for a reader who has never run one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table


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
    first = next(iter(results["detectors"]))
    _print_prompts(results, table, first, most, console)
    if results["prompt_length"] is None:
        console.print(_meaning(results, first), markup=False, soft_wrap=True)
    else:
        _print_figures(results, console)
    if results["truncated_prompts"]:
        console.print(f"{results['truncated_prompts']} prompt(s) are longer than the text encoder reads and were cut.")
    count = results["prompts"]
    console.print(
        f"{count} prompt{'s' if count > 1 else ''}, {results['seconds_per_prompt']:.2f} s each. "
        f"Scores: {folder / 'prompts.parquet'}   Figures: {folder / 'detection.json'}",
        markup=False,
        soft_wrap=True,
    )


def _print_prompts(results: dict[str, Any], table: pa.Table, first: str, most: int, console: Console) -> None:
    direction = "descending" if results["detectors"][first]["higher_means_memorized"] else "ascending"
    shown = table.sort_by([(first, direction)]).slice(0, most).to_pylist()
    known = results["prompt_length"] is not None
    names = [*results["detectors"], *(["combined"] if "combined" in table.column_names else [])]
    screen = Table(title=f"Prompts by {first}, most suspicious first", title_justify="left")
    screen.add_column("prompt", ratio=1, min_width=16)
    for heading in (["memorized"] if known else []) + names:
        screen.add_column(heading.replace("_", " "), justify="right")
    for row in shown:
        truth = ["yes" if row["memorized"] else "no"] if known else []
        screen.add_row(escape(row["prompt"][:80]), *truth, *(f"{row[name]:.4g}" for name in names))
    console.print(screen)
    if len(table) > most:
        console.print(f"... and {len(table) - most} more in prompts.parquet.")


def _meaning(results: dict[str, Any], first: str) -> str:
    text = (
        "What this says: a memorized prompt pulls the model harder towards one image than others do, and scores higher "
        f"for it. {first.replace('_', ' ')} is the most reliable of these on published models. "
    )
    if results["prompts"] == 1:
        text += "One prompt alone shows nothing: there is no score from which on a prompt is memorized. "
    return text + (
        "Scores depend on model, guidance and steps, so they are comparable within this table only. Put into one file "
        "the prompts in question and prompts that the model cannot have seen, of the same kind and length: those that "
        "stand out against them are suspicious. With a column `memorized` (0 or 1) the detectors are measured, too."
    )


def _print_figures(results: dict[str, Any], console: Console) -> None:
    screen = Table(title="Memorized against other prompts (95 % intervals)", title_justify="left")
    screen.add_column("score", ratio=1, min_width=14)
    for heading in ("AUROC", "same length", "TPR at 1 % FPR", "TPR at 3 % FPR", "denoiser calls"):
        screen.add_column(heading, justify="right")
    rows = {**results["detectors"], "combined": results["combined"], "prompt length": results["prompt_length"]}
    for name, figures in rows.items():
        calls = str(figures.get("denoiser_calls", ""))
        if figures["auroc"] is None:
            screen.add_row(name.replace("_", " "), "not measured", "", "", "", calls)
            continue
        low, high = figures["interval"]
        same = figures.get("same_length", {}).get("auroc")
        rates = [f"{rate['strict']:.2f} / {rate['nearest']:.2f}" for rate in figures["true_positive_rates"]]
        auroc = f"{figures['auroc']:.3f} ({low:.3f} to {high:.3f})"
        screen.add_row(name.replace("_", " "), auroc, "" if same is None else f"{same:.3f}", *rates, calls)
    console.print(screen)
    shared: dict[str, Any] = next(iter(results["detectors"].values())).get("same_length", {})
    if shared.get("auroc") is None:
        among = f"Same length: {shared.get('reason', 'not measured')}."
    else:
        among = (
            f"Same length: {shared['memorized']} memorized and {shared['others']} other prompts that share a length, "
            "compared within it."
        )
    console.print(
        "TPR: share of memorized prompts found while that share of the others is; strictly below the rate / at the "
        f"point nearest to it. {among} Denoiser calls: per prompt. A score that the prompts' length explains is no "
        "detection.",
        soft_wrap=True,
    )
    best = (results["combined"] or {}).get("best_single")
    if best is not None:
        low, high = best["interval"]
        console.print(
            f"Combined: out-of-fold scores of {results['combined']['folds']} folds. The best single detector, chosen "
            f"on the other folds ({', '.join(best['chosen'])}), has {best['auroc']:.3f}; difference "
            f"{best['difference']:+.3f} ({low:+.3f} to {high:+.3f}).",
            soft_wrap=True,
        )
    for name, figures in rows.items():
        if figures["auroc"] is None:
            console.print(f"{name.replace('_', ' ')} is not measured: {figures['reason']}.", soft_wrap=True)
    for note in dict.fromkeys(note for figures in rows.values() for note in figures.get("notes", [])):
        console.print(f"Note: {note}", soft_wrap=True)
