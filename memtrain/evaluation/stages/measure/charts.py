"""Charts of `measure`: prompts against a threshold, ROC, the curve over checkpoints, and evidence in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from memtrain.evaluation.report.chart import ALARM, INK, SERIES, SIZE, SOFT, axes_of, chart, svg
from memtrain.evaluation.report.figure_text import figure_text
from memtrain.evaluation.report.shares import percent_of, words
from memtrain.functional.ranking import auroc
from memtrain.functional.roc import roc_points
from memtrain.records import HELDOUT, PLANTED, REPEATED

COLOURS = {PLANTED: SERIES[1], REPEATED: SERIES[1], HELDOUT: SERIES[4]}
MOST_LINES = 5
"""Largest number of curves in one ROC chart."""


def strip(values: Mapping[str, Sequence[float]], threshold: float, *, name: str, label: str, higher: bool) -> Markup:
    """Chart one line of dots per group, with the threshold.

    Args:
        values: the values of the prompts, by group.
        threshold: the threshold, drawn across all lines.
        name: the name of the chart in the page.
        label: the label of the axis.
        higher: whether values above the threshold, not below, count as reproduced.
    """
    figure, axes = axes_of(0.8 + 0.45 * len(values))
    spread = np.random.default_rng(0)
    for line, (group, dots) in enumerate(values.items()):
        heights = line + spread.uniform(-0.25, 0.25, len(dots))
        axes.scatter(list(dots), heights, s=14, color=COLOURS.get(group, SERIES[0]), linewidths=0)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
    position = (threshold, 1.0)
    axes.annotate(
        f"threshold {threshold:.2f}",
        position,
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=SIZE,
        color=INK,
    )
    axes.set_yticks(range(len(values)), [figure_text(words(group), 24) for group in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    if not higher:
        axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.spines["left"].set_visible(False)
    side = "above" if higher else "below"
    beyond = []
    for group, dots in values.items():
        found = sum((dot >= threshold) if higher else (dot < threshold) for dot in dots)
        beyond.append(f"{words(group)}: {found} of {len(dots)} {side}")
    return chart(figure, name=name, alt=f"{label}, threshold {threshold:.3f}. " + "; ".join(beyond))


def roc(scores: Mapping[str, tuple[Sequence[float], Sequence[bool]]], *, name: str, what: str) -> Markup:
    """Chart true-positive against false-positive rates of several scores.

    Args:
        scores: the values by name, where a higher one means memorized, and the truth.
        name: the name of the chart in the page.
        what: the two classes in words.
    """
    areas: dict[str, float] = {}
    figure, axes = axes_of(3.4)
    for label, (values, truth) in scores.items():
        there = [index for index, value in enumerate(values) if value is not None and math.isfinite(value)]
        labels = torch.tensor([truth[index] for index in there], dtype=torch.bool)
        if not labels.any() or labels.all() or len(areas) == MOST_LINES:
            continue
        numbers = torch.tensor([float(values[index]) for index in there], dtype=torch.float64)
        areas[label] = float(auroc(numbers, labels))
        false, true = roc_points(numbers, labels)
        colour = SERIES[len(areas) - 1]
        text = f"{figure_text(words(label), 28)} ({areas[label]:.3f})"
        axes.plot(false.tolist(), true.tolist(), color=colour, linewidth=1.6, label=text)
    if not areas:
        return Markup("")
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    axes.legend(frameon=False, fontsize=SIZE, labelcolor=INK, loc="lower right")
    said = "; ".join(f"{words(label)} {area:.3f}" for label, area in areas.items())
    caption = f"ROC: {what}. The figure in brackets is the area under the curve."
    return chart(figure, name=name, alt=f"ROC curves, {what}; areas: {said}", caption=caption)


def checkpoints(curve: Sequence[Mapping[str, Any]]) -> Markup:
    """Chart the reproduced share against the step, with intervals, and the held-out loss."""
    points = [one for one in curve if one.get("step") is not None and one.get("share") is not None]
    if len(points) < 2:
        return Markup("")
    points = sorted(points, key=lambda one: one["step"])
    steps, shares = [one["step"] for one in points], [100 * one["share"] for one in points]
    figure, axes = axes_of(2.8)
    low, high = ([100 * (one.get("interval") or [one["share"]] * 2)[end] for one in points] for end in (0, 1))
    below = [max(0.0, share - end) for share, end in zip(shares, low, strict=True)]
    above = [max(0.0, end - share) for share, end in zip(shares, high, strict=True)]
    axes.errorbar(steps, shares, yerr=[below, above], color=SERIES[1], marker="o", markersize=4, capsize=3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("reproduced pictures, %")
    axes.yaxis.label.set_color(SERIES[1])
    losses = [float(one["heldout_loss"]) for one in points if one.get("heldout_loss") is not None]
    if len(losses) == len(points):
        beside = axes.twinx()
        beside.plot(steps, losses, color=SERIES[2], marker="s", markersize=3, linestyle="--")
        beside.set_ylabel("held-out loss", color=SERIES[2], fontsize=SIZE)
        beside.tick_params(labelsize=SIZE, colors=INK)
        beside.spines[["top", "left", "right", "bottom"]].set_visible(False)
    said = "; ".join(f"step {step}: {percent_of(one['share'])}" for step, one in zip(steps, points, strict=True))
    return chart(figure, name="checkpoints", alt=f"Share of training pictures reproduced by checkpoint. {said}")


def evidence(steps: Sequence[int], scores: Sequence[float], *, threshold: float | None, name: str) -> Markup:
    """Draw the small curve of evidence beside a picture."""
    figure, axes = axes_of(1.02, width=1.9, bare=True)
    axes.plot(list(steps), list(scores), color=SERIES[2], linewidth=1.5)
    said = f"evidence from {scores[0]:.2g} at step {steps[0]} to {scores[-1]:.2g} at step {steps[-1]}"
    if threshold is not None:
        axes.axhline(threshold, color=ALARM, linewidth=1, linestyle="--")
        crossed = next((step for step, score in zip(steps, scores, strict=True) if score >= threshold), None)
        said += f"; threshold at the end {threshold:.2g} " + (
            "not reached" if crossed is None else f"reached at step {crossed}"
        )
    return svg(figure, name=name, alt=said)
