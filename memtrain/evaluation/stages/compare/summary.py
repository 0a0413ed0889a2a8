"""Summary of a comparison in one line: gain and cost."""

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
"""Figures of quality that the line names, in their order."""
HIGHER_IS_BETTER = ("clip_score",)


def summary(results: Mapping[str, Any]) -> str:
    """Make the summary line of `comparison.json`.

    Args:
        results: the content of the file, with `runs`, `groups` and `quality`.
    """
    before, after = (run["name"] for run in results["runs"])
    trained = results["groups"].get("trained on")
    if trained is None:
        gained = "not known, both evaluations sampled no common training picture"
    else:
        n, first, second = trained["n"], trained["before"]["k"], trained["after"]["k"]
        gained = f"{first} of {n} training pictures came back, {second} do now"
        if first == second and not trained["stopped"]:
            gained = f"{first} of {n} training pictures come back, as before"
        else:
            inside = _points(trained["change"]["interval"])
            gained += f" ({100 * trained['change']['mean']:+.1f} points{inside}; exact p {trained['p_value']:.2g})"
    better, worse = _quality(results["quality"])
    gained = "; ".join([gained, *better])
    measured = any(name in results["quality"] for name in COSTS)
    cost = ", ".join(worse) if worse else "nothing that was measured" if measured else "not known, no figure is in both"
    return f"{after} against {before}. Gained: {gained}. Cost: {cost}.{_heldout(results['groups'].get('heldout'))}"


def _quality(quality: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the figures that got better, and the figures that got worse."""
    better: list[str] = []
    worse: list[str] = []
    for name, words in COSTS.items():
        found = quality.get(name)
        if found is not None and found["before"] != found["after"]:
            higher = found["after"] > found["before"]
            said = f"{words} {found['before']:.4g} to {found['after']:.4g}" + _relative(found["relative"])
            (better if higher == (name in HIGHER_IS_BETTER) else worse).append(said)
    return better, worse


def _heldout(heldout: Mapping[str, Any] | None) -> str:
    """Describe how near generations come to pictures that neither model has seen."""
    change = None if heldout is None else heldout["best_ratio"]["change"]
    if change is None or change["interval"] is None:
        return ""
    ends = " to ".join(f"{end:+.3f}" for end in change["interval"])
    return f" Ratio for held-out prompts: {change['mean']:+.3f} ({ends})."


def _points(interval: Any) -> str:
    return f", {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""


def _relative(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:+.1f}%)"
