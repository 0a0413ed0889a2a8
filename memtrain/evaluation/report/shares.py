"""Figures of results files in words: shares with their intervals, and values with theirs.

Results name what they count in many ways (`reproduced`, `copies`, `found`, ...); a share is told by its `n` and its
`share`, and the count is the whole number beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

COUNTS = ("reproduced", "copies", "found", "alike", "nearer", "k", "extracted", "verbatim", "template")
"""What stands for the number that was found, in this order."""


def is_share(value: object) -> bool:
    """Whether it is a share of something counted."""
    return isinstance(value, Mapping) and "share" in value and "n" in value


def counted(share: Mapping[str, Any]) -> int | None:
    """How many were found; None if the share does not say."""
    for name in COUNTS:
        value = share.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return round(share["share"] * share["n"]) if share["share"] is not None else None


def percent_of(share: float | None) -> str:
    """`12.5%`, or a dash."""
    return "–" if share is None else f"{100 * share:.3g}%"


def interval_of(ends: Any) -> str:
    """`10% to 20%`; empty where none is known."""
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or None in ends:
        return ""
    return f"{percent_of(ends[0])} to {percent_of(ends[1])}"


def share_text(share: Mapping[str, Any] | None) -> str:
    """`18.3% (11 of 60; 10.6% to 29.9%)`, or a dash."""
    if not share or share.get("share") is None:
        return "–"
    inside = interval_of(share.get("interval"))
    return f"{percent_of(share['share'])} ({counted(share)} of {share['n']}{'; ' + inside if inside else ''})"


def note_of(share: Mapping[str, Any]) -> str:
    """`11 of 60; 10.6% to 29.9%`."""
    inside = interval_of(share.get("interval"))
    return f"{counted(share)} of {share['n']}" + (f"; {inside}" if inside else "")


def value_text(value: Any) -> str:
    """A figure of any kind in a few characters."""
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
    """A key of a results file as a reader writes it."""
    return name.replace("_", " ").replace("heldout", "held-out")


def rows_of(name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """Name, figure and interval of whatever a results file holds under a key, one row for each figure in it.

    Args:
        name: of the key, in words.
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
    """What stands beside a value: its interval, what measured it, of how many, and why there is none."""
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
