"""Tables of the report on planted secrets: exposure against repetition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import paragraph, table
from memtrain.evaluation.report.shares import interval_of, value_text

HEADINGS = ("visits per epoch", "secrets", "bits, mean", "interval", "at the bound")


def exposure_tables(exposure: Mapping[str, Any]) -> list[Markup]:
    """Make a table for each kind of secret and each way to measure its exposure.

    Args:
        exposure: the part `counts.exposure` of `results.json`.
    """
    shown: list[Markup] = []
    canaries = exposure.get("canaries")
    for name, how in (("by_loss", "their loss"), ("by_similarity", "generations for their captions")):
        found = (canaries or {}).get(name)
        if canaries and found:
            said = (
                f"The exposure of a canary by {how} is the number of bits by which the model makes it easier to guess "
                f"which of {canaries['candidates']} images was planted. It is at most {canaries['highest']:.1f} bits. "
                f"Images that the model never saw have {canaries['null_mean']:.1f} bits on average."
            )
            shown += [paragraph(said), table(HEADINGS, _rows(found["by_repetition"]), caption=f"Canaries by {how}")]
    if borders := exposure.get("border_keys"):
        rows = [
            (
                _visits(one["repeats"]),
                one["n"],
                value_text(one["errors"]["mean"]),
                interval_of(one["errors"].get("interval")),
                value_text(one["bits"]["mean"]),
                value_text(one.get("correlation")),
            )
            for one in borders["by_repetition"]
        ]
        headings = ("visits per epoch", "borders", "key error, mean", "interval", "bits, mean", "correlation")
        shown.append(table(headings, rows, caption="Border keys: grey levels that the model paints around a picture"))
    return shown


def _rows(table_of: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (_visits(one["repeats"]), one["n"], value_text(one["mean"]), interval_of(one["interval"]), one["saturated"])
        for one in table_of
    ]


def _visits(count: int) -> str:
    return str(count) if count else "never planted"
