"""The ratio of pixel distances as one of the measures of copying: its threshold, its power, and its counts.

Its figures are those of `replication` in `results.json`, in the form of the other measures. Its similarity is the
negative of the ratio, so that higher means a copy for all measures. Its power is measured with training pictures,
unchanged and edited, in the place of generations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memtrain.evaluation.measures.copying.calibration import PLAIN, SEES
from memtrain.evaluation.measures.edits import LIGHT
from memtrain.evaluation.measures.replication import Replication, replication
from memtrain.evaluation.stages.measure.chance import by_chance, let_through
from memtrain.evaluation.stages.measure.controls import chosen_rows, planted_copies
from memtrain.evaluation.stages.measure.copying import Compare
from memtrain.evaluation.stages.measure.counting.shares import counted, share_of_generations
from memtrain.evaluation.stages.measure.grounds import PLAIN as PLAINLY
from memtrain.evaluation.stages.measure.null import nearest_ratios


def ratio_measure(
    given: Compare,
    distances: Replication,
    groups: Mapping[str, Mapping[str, Any]],
    *,
    own_index: Tensor,
    threshold: float,
    thresholds: Tensor,
    level: float = 0.95,
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """Make the part of `results.json` on the ratio among the measures of copying, and its controls.

    Args:
        given: the generations, and the images that they are compared with.
        distances: the distances of P prompts.
        groups: the figures by group, from :func:`memtrain.evaluation.stages.measure.counts.summarize_groups`.
        own_index: the index of each own image among the training images, `(P,)`.
        threshold: the threshold of a prompt with one own picture.
        thresholds: the threshold of each prompt, `(P,)`.
        level: the coverage of the intervals.

    Returns:
        The figures, and two bool tensors: whether each planted copy and each unplanted picture counts as a copy.
    """
    rows, heldout = chosen_rows(given.trained), int(given.calibrating.sum())
    images = given.perfect[rows]
    power = {}
    for edit in (PLAIN, *LIGHT) if rows else ():
        found = _found(given, _edited(images, edit), rows, own_index=own_index, thresholds=thresholds)
        power[edit] = counted(int(found.sum()), len(found), name="found", level=level)
    planted = unplanted = torch.zeros(0, dtype=torch.bool)
    if rows:
        copies = planted_copies(given.perfect[rows])
        planted = _found(given, copies, rows, own_index=own_index, thresholds=thresholds)
    unseen = chosen_rows(given.unseen)
    if unseen:
        nowhere = torch.full((len(unseen),), -1)
        compared = _compared(given, given.perfect[unseen], unseen, own_index=nowhere)
        unplanted = nearest_ratios(compared) < PLAINLY * threshold
    plain = power.get(PLAIN, {}).get("share")
    copies_of_any = nearest_ratios_of_each(distances)[given.trained] < PLAINLY * threshold
    said = {
        "threshold": -threshold,
        "false_positive_rate": given.rate,
        "rate_bound": None,
        "n_heldout": heldout,
        "sees": plain is not None and plain >= SEES,
        "power": power,
        "train_to_train": {},
        "groups": {name: _group(group, given.rate, heldout) for name, group in groups.items()},
        "nearest": {"threshold": -PLAINLY * threshold, **share_of_generations(copies_of_any, level=level)},
        "between": None,
    }
    return said, (planted, unplanted)


def nearest_ratios_of_each(distances: Replication) -> Tensor:
    """Return `(P, K)`: the distance of each generation to the nearest training image over the mean of the others."""
    count = max(2, distances.neighbours)
    others = (count * distances.neighbour_distance - distances.nearest_distance) / (count - 1)
    return torch.minimum(
        distances.nearest_distance / others.clamp(min=1e-12),
        # The neighbours do not include the own image, so a nearest own image is handled here.
        torch.where(distances.own_distance <= distances.nearest_distance, distances.ratio, torch.inf),
    )


def _group(group: Mapping[str, Any], rate: float | None, heldout: int) -> dict[str, Any]:
    expected = probability = None
    if rate is not None:
        chance = group["beyond_looks"]["chance"] if "beyond_looks" in group else min(1.0, rate * group["looks"])
        allowed = max(1, round(let_through(rate, heldout) * chance / rate))
        expected = chance * group["n"]
        probability = by_chance(group["reproduced"], group["n"], allowed=allowed, heldout=heldout)
    kept = {name: group[name] for name in ("n", "reproduced", "share", "interval")}
    return {**kept, "expected": expected, "probability": probability}


def _edited(images: Tensor, edit: str) -> Tensor:
    """Edit images `(n, 3, H, W)` uint8, in the same way in every evaluation."""
    if edit == PLAIN:
        return images
    made = []
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        changed = LIGHT[edit](picture, np.random.default_rng(number))
        made.append(torch.from_numpy(np.array(changed)).permute(2, 0, 1))
    return torch.stack(made)


def _compared(given: Compare, images: Tensor, rows: list[int], *, own_index: Tensor) -> Replication:
    """Measure images `(n, 3, H, W)` in the place of the generations of the prompts in `rows`."""
    return replication(
        images[:, None],
        given.samples.own_images[rows],
        training=given.samples.training_images,
        own_index=own_index,
        family=given.family,
    )


def _found(given: Compare, images: Tensor, rows: list[int], *, own_index: Tensor, thresholds: Tensor) -> Tensor:
    """Return `(n,)` bool: whether each image counts as a copy of its picture."""
    compared = _compared(given, images, rows, own_index=own_index[rows])
    return compared.best < thresholds[rows].float()
