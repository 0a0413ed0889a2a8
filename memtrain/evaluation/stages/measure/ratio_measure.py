"""The ratio of pixel distances among the measures of copying: its threshold, its power, and what it counts.

Its figures are those of `results.json`'s `replication`, said as those of the other measures are. Its similarity is the
negative of the ratio, so that higher means a copy here, too. Power: training pictures as they are, and edited, in the
place of generations.
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
    """What `results.json` says of the ratio among the measures of copying, and its controls.

    Args:
        given: what generations are compared with.
        distances: of P prompts.
        groups: from :func:`memtrain.evaluation.stages.measure.counts.summarize_groups`.
        own_index: `(P,)`.
        threshold: of a prompt with one own picture.
        thresholds: `(P,)`.
        level: coverage of the intervals.

    Returns:
        The figures; and of planted copies and of unplanted pictures, which are taken for copies.
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
    """`(P, K)` distance of each generation to the nearest training image over the mean of the others."""
    count = max(2, distances.neighbours)
    others = (count * distances.neighbour_distance - distances.nearest_distance) / (count - 1)
    return torch.minimum(
        distances.nearest_distance / others.clamp(min=1e-12),
        # An own image that is the nearest one is not among the neighbours.
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
    """Images `(n, 3, H, W)` uint8 after an edit, the same in every evaluation."""
    if edit == PLAIN:
        return images
    made = []
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        changed = LIGHT[edit](picture, np.random.default_rng(number))
        made.append(torch.from_numpy(np.array(changed)).permute(2, 0, 1))
    return torch.stack(made)


def _compared(given: Compare, images: Tensor, rows: list[int], *, own_index: Tensor) -> Replication:
    """Images `(n, 3, H, W)` in the place of the generations of the prompts in `rows`."""
    return replication(
        images[:, None],
        given.samples.own_images[rows],
        training=given.samples.training_images,
        own_index=own_index,
        family=given.family,
    )


def _found(given: Compare, images: Tensor, rows: list[int], *, own_index: Tensor, thresholds: Tensor) -> Tensor:
    """`(n,)` bool, which images count as their pictures."""
    compared = _compared(given, images, rows, own_index=own_index[rows])
    return compared.best < thresholds[rows].float()
