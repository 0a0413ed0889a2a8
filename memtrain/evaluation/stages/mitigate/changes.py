"""What an inference-time mitigation changed, in figures: memorized prompts and others apart, each with an interval.

A prompt, not an image, is what is counted and resampled: the images of a prompt are no independent draws. What is said
about the change is paired by prompt, whose images with and without the mitigation start from the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.stages.prompts import group_names
from memtrain.functional.ranking import mean_with_interval, proportion_interval


@dataclass(frozen=True)
class Measured:
    """What was measured of the images of P prompts with K seeds, under one condition.

    Attributes:
        ratio: `(P, K)` distance ratio to the own image; None where own images are not known.
        diversity: `(P,)` distance between the images of a prompt; None with one seed.
        fidelity: `(P, K)`; None where it cannot be measured.
    """

    ratio: Tensor | None
    diversity: Tensor | None
    fidelity: Tensor | None


def summarize(
    memorized: Sequence[bool | None],
    *,
    without: Measured,
    mitigated: Measured,
    moved: Tensor,
    threshold: float | None,
    **bootstrap: Any,
) -> dict[str, dict[str, Any]]:
    """Figures per group of prompts.

    Args:
        memorized: P truths.
        without: what was measured without the mitigation.
        mitigated: and with it.
        moved: `(P, K)` distance of each image to the one without the mitigation.
        threshold: ratio below which a prompt counts as reproduced; None where there is none.
        bootstrap: `seed`, `resamples` and `level` of the intervals.

    Returns:
        Per group its number of `prompts`, the figures `without` and `with`, their paired `change` (with − without), and
        `distance_to_unmitigated`. Of reproduction the change is how many prompts stopped and started being reproduced.
    """
    groups = group_names(memorized)
    summary: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(groups):
        inside = torch.tensor([group == name for group in groups])
        conditions = {"without": without, "with": mitigated}
        figures: dict[str, Any] = {"prompts": int(inside.sum())}
        for condition, measured in conditions.items():
            figures[condition] = _condition(measured, inside, threshold=threshold, **bootstrap)
        figures["change"] = _change(without, mitigated, inside, threshold=threshold, **bootstrap)
        figures["distance_to_unmitigated"] = mean_with_interval(moved[inside].mean(dim=1), **bootstrap)
        summary[name] = figures
    return summary


def _reproduced(measured: Measured, inside: Tensor, threshold: float | None) -> Tensor | None:
    """`(n,)` bool; a prompt is reproduced if any of its images is."""
    if measured.ratio is None or threshold is None:
        return None
    return measured.ratio[inside].amin(dim=1) < threshold


def _condition(
    measured: Measured, inside: Tensor, *, threshold: float | None, **bootstrap: Any
) -> dict[str, Mapping[str, Any] | None]:
    reproduced = _reproduced(measured, inside, threshold)
    share = None
    if reproduced is not None:
        k, n = int(reproduced.sum()), len(reproduced)
        ends = proportion_interval(k, n, level=bootstrap.get("level", 0.95))
        share = {"k": k, "n": n, "share": k / n, "interval": list(ends)}
    images = None
    if measured.ratio is not None and threshold is not None:
        each = (measured.ratio[inside] < threshold).double().mean(dim=1)
        images = mean_with_interval(each, **bootstrap)
    return {
        "reproduced": share,
        "reproduced_images": images,
        "diversity": _mean(measured.diversity, inside, **bootstrap),
        "fidelity": _mean(measured.fidelity, inside, **bootstrap),
    }


def _change(
    without: Measured, mitigated: Measured, inside: Tensor, *, threshold: float | None, **bootstrap: Any
) -> dict[str, Any]:
    before, after = (_reproduced(measured, inside, threshold) for measured in (without, mitigated))
    counts = None
    if before is not None and after is not None:
        counts = {"stopped": int((before & ~after).sum()), "started": int((after & ~before).sum())}
    differences = {}
    for name in ("diversity", "fidelity"):
        old, new = getattr(without, name), getattr(mitigated, name)
        paired = None if old is None or new is None else new.double() - old.double()
        differences[name] = _mean(paired, inside, **bootstrap)
    return {"reproduced": counts, **differences}


def _mean(values: Tensor | None, inside: Tensor, **bootstrap: Any) -> Mapping[str, Any] | None:
    """Mean over prompts of `(P,)` or `(P, K)` values."""
    if values is None:
        return None
    chosen = values[inside].double()
    return mean_with_interval(chosen if chosen.dim() == 1 else chosen.mean(dim=1), **bootstrap)
