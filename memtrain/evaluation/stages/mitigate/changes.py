"""Figures of the change by an inference-time mitigation, for memorized and other prompts, each with an interval.

Prompts, not images, are counted and resampled, because the images of a prompt are not independent draws. Changes are
paired by prompt. The images of a prompt with and without the mitigation start from the same noise.
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
    """Measurements of the images of P prompts with K seeds under one condition.

    Attributes:
        ratio: the distance ratio to the own image, `(P, K)`; None if own images are not known.
        diversity: the distance between the images of a prompt, `(P,)`; None with one seed.
        fidelity: the fidelity of each image, `(P, K)`; None if it cannot be measured.
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
    """Compute figures by group of prompts.

    Args:
        memorized: the known truth of the P prompts.
        without: the measurements without the mitigation.
        mitigated: the measurements with the mitigation.
        moved: the distance of each image to the image without the mitigation, `(P, K)`.
        threshold: the ratio below which a prompt counts as reproduced; None if there is no threshold.
        bootstrap: the `seed`, `resamples` and `level` of the intervals.

    Returns:
        By group the number of `prompts`, the figures `without` and `with`, their paired `change` (with − without), and
        `distance_to_unmitigated`. The change of reproduction is the number of prompts that stopped and that started
        being reproduced.
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
    """Return `(n,)` bool: whether any image of each prompt is reproduced."""
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
    """Return the mean over prompts of values `(P,)` or `(P, K)`, with an interval."""
    if values is None:
        return None
    chosen = values[inside].double()
    return mean_with_interval(chosen if chosen.dim() == 1 else chosen.mean(dim=1), **bootstrap)
