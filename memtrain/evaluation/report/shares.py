"""Figures of results files in words: shares and values with their intervals.

Results use several names for a count (`reproduced`, `copies`, `found`, ...). A mapping with `n` and `share` is a share;
its count is the whole number under one of these names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

COUNTS = ("reproduced", "copies", "found", "alike", "nearer", "k", "extracted", "verbatim", "template")
"""Names of the count of a share, in the order in which they are looked for."""


def is_share(value: object) -> bool:
    """Whether a value is a share of something counted."""
    return isinstance(value, Mapping) and "share" in value and "n" in value


def counted(share: Mapping[str, Any]) -> int | None:
    """Return the count of a share; None if the share does not give it."""
    for name in COUNTS:
        value = share.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return round(share["share"] * share["n"]) if share["share"] is not None else None


def percent_of(share: float | None) -> str:
    """Format a share as `12.5%`; a dash for None."""
    return "–" if share is None else f"{100 * share:.3g}%"


def interval_of(ends: Any) -> str:
    """Format an interval as `10% to 20%`; empty if no interval is known."""
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or None in ends:
        return ""
    return f"{percent_of(ends[0])} to {percent_of(ends[1])}"


def share_text(share: Mapping[str, Any] | None) -> str:
    """Format a share as `18.3% (11 of 60; 10.6% to 29.9%)`; a dash if it is not known."""
    if not share or share.get("share") is None:
        return "–"
    inside = interval_of(share.get("interval"))
    return f"{percent_of(share['share'])} ({counted(share)} of {share['n']}{'; ' + inside if inside else ''})"


def note_of(share: Mapping[str, Any]) -> str:
    """Format the count and the interval of a share as `11 of 60; 10.6% to 29.9%`."""
    inside = interval_of(share.get("interval"))
    return f"{counted(share)} of {share['n']}" + (f"; {inside}" if inside else "")


def value_text(value: Any) -> str:
    """Format a figure of any kind in a few characters."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(value_text(item) for item in value)
    return str(value)


def words(name: str) -> str:
    """Write a key of a results file as words."""
    return name.replace("_", " ").replace("heldout", "held-out")


def rows_of(name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """Make a row of name, figure and interval for each figure that a results file holds under a key.

    Args:
        name: the key in words.
        value: a share, a figure with its `value` and `interval`, a number, or a mapping of these.
    """
    if is_share(value):
        yield name, percent_of(value["share"]), note_of(value)
        inner = {key: item for key, item in value.items() if isinstance(item, Mapping)}
    elif isinstance(value, Mapping) and "value" in value:
        yield name, value_text(value["value"]), _around(value)
        inner = {key: item for key, item in value.items() if isinstance(item, Mapping)}
    elif isinstance(value, Mapping):
        inner = dict(value)
    else:
        if value is not None:
            yield name, value_text(value), ""
        return
    for key, item in inner.items():
        yield from rows_of(f"{name}, {words(str(key))}" if name else words(str(key)), item)


def _around(figure: Mapping[str, Any]) -> str:
    """Describe a value: its interval, the network that measured it, counts, and the reason if there is no value."""
    ends = figure.get("interval")
    parts = []
    if isinstance(ends, (list, tuple)) and len(ends) == 2 and None not in ends:
        parts.append(f"{value_text(ends[0])} to {value_text(ends[1])}")
    elif figure["value"] is not None:
        parts.append("too few prompts for an interval")
    for name in ("backend", "features", "reason"):
        if figure.get(name):
            parts.append(f"{name} {figure[name]}" if name != "reason" else str(figure[name]))
    for name in ("n", "n_generated", "n_real"):
        if figure.get(name) is not None:
            parts.append(f"{words(name)} {figure[name]}")
    return "; ".join(parts)
