"""The beginning of memorization in sentences: the first flags, and the step at which the two losses part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.evidence.set_curve import Point

FEW = 100
"""Largest number of training samples for a sentence about the curve of the whole set."""
APART = 0.1
"""Least change of the log loss for a sentence, because windows differ by about this much by chance."""


def onset_figures(first_flagged: Mapping[str, int], points: Sequence[Point]) -> dict[str, Any]:
    """Return the entries of `records/calibration.json` about the course of a run.

    Args:
        first_flagged: the step of the flag of each flagged sample.
        points: points of the loss relative to the base model; empty if unknown.

    Returns:
        `first_flagged_step` (None without a flag), `parting_step` (see :func:`parting`), `curve` (a list of windows
        with `step`, `training` and `heldout`: changes of the mean log loss since the base model).
    """
    found = parting(points)
    return {
        "first_flagged_step": min(first_flagged.values(), default=None),
        "parting_step": None if found is None else found.step,
        "curve": [
            {
                "step": point.step,
                "training": round(point.training, 4),
                "heldout": None if math.isnan(point.heldout) else round(point.heldout, 4),
            }
            for point in points
        ],
    }


def parting(points: Sequence[Point]) -> Point | None:
    """Return the point of the lowest held-out loss, if only the training loss fell after it, or else None.

    The base model, at 0 for both, is the first point. Each window is averaged with its neighbours before they are
    compared.
    """
    known = _smooth([Point(0, 0.0, 0.0), *(point for point in points if not math.isnan(point.heldout))])
    if len(known) < 3:
        return None
    lowest, last = min(known, key=lambda point: point.heldout), known[-1]
    rises, falls = last.heldout - lowest.heldout, lowest.training - last.training
    return lowest if rises > APART / 2 and falls > APART else None


def onset_sentences(figures: Mapping[str, Any], *, samples: int, edited: bool = False) -> list[str]:
    """Return the sentences of the summary.

    Args:
        figures: the figures from :func:`onset_figures`.
        samples: number of training samples.
        edited: whether edited copies replace held-out samples.
    """
    lines = []
    first = figures["first_flagged_step"]
    if first is not None:
        lines.append(f"The first of them was flagged at step {first}.")
    curve = [window for window in figures["curve"] if window["heldout"] is not None]
    if not curve or samples > FEW:
        return lines
    others = "edited copies of them" if edited else "held-out images"
    text = (
        f"Loss on the {samples} training images {_percent(curve[-1]['training'])} against the base model, "
        f"on {others} {_percent(curve[-1]['heldout'])}"
    )
    step = figures["parting_step"]
    if step is None:
        return [*lines, f"{text}."]
    begin = "from the start" if step == 0 else f"since step {step}"
    keep = "" if step == 0 else f" A checkpoint of about step {step} has learned their common features."
    return [*lines, f"{text}: {begin} only the former falls, so the model is learning these images.{keep}"]


def _smooth(points: Sequence[Point]) -> list[Point]:
    found = []
    for index, point in enumerate(points):
        near = points[max(index - 1, 0) : index + 2] if index else points[:1]
        training = sum(one.training for one in near) / len(near)
        found.append(Point(point.step, training, sum(one.heldout for one in near) / len(near)))
    return found


def _percent(change: float) -> str:
    return f"{100 * math.expm1(change):+.0f} %"
