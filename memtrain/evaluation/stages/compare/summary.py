"""One line: what was gained, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COSTS = {
    "heldout_loss": "held-out loss",
    "kid": "KID",
    "fid": "FID",
    "clip_fid": "CLIP-FID",
    "clip_score": "CLIP score",
}
"""Figures of quality that the line names, in this order."""


def summary(results: Mapping[str, Any]) -> str:
    """What `comparison.json` says first.

    Args:
        results: its content, with `runs`, `groups` and `quality`.
    """
    before, after = (run["name"] for run in results["runs"])
    trained = results["groups"].get("trained on")
    if trained is None:
        gained = "no picture that was trained on was asked of both"
    else:
        n, first, second = trained["n"], trained["before"]["k"], trained["after"]["k"]
        gained = f"{first} of {n} training pictures came back, {second} do now"
        if first == second and not trained["stopped"]:
            gained = f"{first} of {n} training pictures come back, as before"
        else:
            inside = _points(trained["change"]["interval"])
            gained += f" ({100 * trained['change']['mean']:+.1f} points{inside}; exact p {trained['p_value']:.2g})"
    costs = [
        f"{words} {found['before']:.4g} to {found['after']:.4g}" + _relative(found["relative"])
        for name, words in COSTS.items()
        if (found := results["quality"].get(name)) is not None
    ]
    heldout = results["groups"].get("heldout")
    if heldout is not None:
        change = heldout["best_ratio"]["change"]
        if change["interval"] is not None:
            ends = " to ".join(f"{end:+.3f}" for end in change["interval"])
            costs.append(f"ratio for held-out prompts {change['mean']:+.3f} ({ends})")
    cost = ", ".join(costs) if costs else "no figure of quality is in both results"
    return f"{after} against {before}. Gained: {gained}. Cost: {cost}."


def _points(interval: Any) -> str:
    return f", {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""


def _relative(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:+.1f}%)"
