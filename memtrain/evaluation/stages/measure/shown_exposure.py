"""What the report shows of planted secrets: exposure against repetition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from memtrain.evaluation.report.section import paragraph, table
from memtrain.evaluation.report.shares import interval_of, value_text

HEADINGS = ("visits per epoch", "secrets", "bits, mean", "interval", "at the bound")


def exposure_tables(exposure: Mapping[str, Any]) -> list[Markup]:
    """A table for each kind of secret and each way to ask for it.

    Args:
        exposure: `counts.exposure` of `results.json`.
    """
    shown: list[Markup] = []
    canaries = exposure.get("canaries")
    for name, how in (("by_loss", "their loss"), ("by_similarity", "generations for their captions")):
        found = (canaries or {}).get(name)
        if canaries and found:
            said = (
                f"Exposure of canaries by {how}: bits that the model takes off a guess of which of "
                f"{canaries['candidates']} images was planted, at most {canaries['highest']:.1f}; of images that it "
                f"never saw {canaries['null_mean']:.1f} on average."
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
        shown.append(table(headings, rows, caption="Border keys: levels that the model paints around a picture"))
    return shown


def _rows(table_of: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (_visits(one["repeats"]), one["n"], value_text(one["mean"]), interval_of(one["interval"]), one["saturated"])
        for one in table_of
    ]


def _visits(count: int) -> str:
    return str(count) if count else "never planted"
