"""The figures of the ablation as tables: on a screen, and in RESULTS.md."""

from __future__ import annotations

from typing import Any

from mitigation_results import GROUPS, pooled_doses, summarize
from mitigation_rows import WATCHING, Row
from rich.table import Table

COLUMNS = (
    "row",
    "source",
    "seeds",
    *(f"{name} reproduced" for name in GROUPS.values()),
    "held-out loss",
    "KID",
    "KID without copies",
    "planted flagged",
    "unique flagged",
    "planted visits skipped",
    "unique visits skipped",
    "time per step / plain",
)


def _share(counts: dict[str, Any] | None) -> str:
    if counts is None or not counts["n"]:
        return "–"
    low, high = counts["interval"]
    digits = 0 if high >= 0.02 else 2
    return f"{counts['k']:,} of {counts['n']:,} ({low:.{digits}%} to {high:.{digits}%})"


def _spread(values: dict[str, float] | None, digits: int) -> str:
    if values is None:
        return "–"
    mean, low, high = (f"{values[name]:.{digits}f}" for name in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low} to {high})"


def _skipped(share: dict[str, float] | None, shares: dict[str, dict[str, float] | None]) -> str:
    """Nothing for a method that skips nothing."""
    if share is None or not any(part["max"] for part in shares.values() if part is not None):
        return "–"
    low, high = (f"{100 * share[name]:.1f}" for name in ("min", "max"))
    return f"{100 * share['mean']:.1f} %" + ("" if low == high else f" ({low} to {high})")


def _time(timing: dict[str, Any] | None) -> str:
    if timing is None:
        return "not measured"
    low, high = timing["ratio_interval_95"]
    return f"{timing['ratio_median']:.2f} ({low:.2f} to {high:.2f})"


def cells(line: dict[str, Any]) -> list[str]:
    """One line of :func:`summarize` as text, in the order of :data:`COLUMNS`."""
    row: Row = line["row"]
    seeds = len(line["seeds"])
    return [
        row.name.replace("_", " "),
        row.source,
        str(seeds) if seeds >= row.seeds else f"{seeds} of {row.seeds}",
        *(_share(line["groups"][name]) for name in GROUPS),
        _spread(line["heldout_loss"], 4),
        _spread(line["kid"], 3),
        _spread(line["kid_without_copies"], 3),
        _share(line["flags"]["planted"]),
        _share(line["flags"]["unique"]),
        _skipped(line["skipped"]["planted"], line["skipped"]),
        _skipped(line["skipped"]["unique"], line["skipped"]),
        _time(line["time"]),
    ]


def table(content: dict[str, Any]) -> Table:
    """The table on a screen."""
    shown = Table(title="Mitigations during training, on the embedded default", title_justify="left")
    for index, name in enumerate(COLUMNS):
        shown.add_column(name, justify="left" if index < 2 else "right")
    for line in summarize(content):
        shown.add_row(*cells(line))
    return shown


def markdown_tables(content: dict[str, Any]) -> str:
    """The tables of RESULTS.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells(line)) + " |" for line in summarize(content)]
    timing = content["timing"]
    if "plain" in timing:
        plain, profile = timing["plain"]["seconds"], timing.get("profile")
        lines += ["", f"A plain step takes {plain:.3f} s with {timing['plain']['threads']} threads."]
        if profile is not None:
            lines[-1] += f" Measuring the reference profile takes {profile['seconds']:.0f} s, once per model and data."
    watched = [(row.source, timing[row.name]) for row in WATCHING if row.name in timing]
    if watched:
        lines += ["", "| other ways of watching | time per step / plain |", "|---|---|"]
        lines += [f"| {what} | {_time(found)} |" for what, found in watched]
    doses = pooled_doses(content)
    if doses:
        repeats = list(next(iter(doses.values())))
        lines += ["", "| reproduced at visits per epoch | " + " | ".join(map(str, repeats)) + " |"]
        lines += ["|---" * (1 + len(repeats)) + "|"]
        for name, found in doses.items():
            lines.append(f"| {name} | " + " | ".join(_share(found.get(count)) for count in repeats) + " |")
    return "\n".join(lines)
