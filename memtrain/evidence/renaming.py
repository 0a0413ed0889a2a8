"""The case that a picture equals an earlier picture, so that its evidence moves to the earlier one.

An index that grows with the batches may find late that two families are one
(:class:`memtrain.families.online.OnlineFamilies`). The evidence of both is pooled like visits of one picture, except
for their order. Means are weighted by visits. Flagged samples stay flagged.
"""

from __future__ import annotations

import torch

from memtrain.evidence.bulk import EARLY, FREQUENT, PEAK
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.heldout_peaks import HIGHEST, TURN
from memtrain.evidence.levels import PICTURE
from memtrain.evidence.running_means import Evidence

HIGHER = (PEAK, EARLY, FREQUENT, HIGHEST, TURN)
"""Values by row for which the higher value of two pictures counts for both."""


def rename_picture(calibration: Calibration, old: str, new: str) -> None:
    """Move all values of a picture to another name."""
    for evidence in (calibration.samples, calibration.heldout):
        if evidence is not None:
            pool_rows(evidence, old, new)
    levels = calibration.levels
    if old in levels.flagged_pictures:
        levels.flagged_pictures.discard(old)
        levels.flagged_pictures.add(new)
    crossed = levels.crossed[PICTURE]
    if old in crossed:
        crossed[new] = min(crossed.pop(old), crossed.get(new, 2**62))


def pool_rows(evidence: Evidence, old: str, new: str) -> None:
    """Move the visits of the row `old` to the row `new`; the last row takes its place.

    Within the window, means are the same as for one picture. Beyond it, the pooled mean is taken to be as noisy as
    every mean over a window of visits, which is true again after this many visits.
    """
    if old not in evidence.row:
        return
    first, second = rows = evidence.rows([new, old])
    arrays, before = evidence.arrays, evidence.fewest_visits([first])
    both = evidence.visits[rows].double()
    share = torch.where(both.sum(dim=0) > 0, both / both.sum(dim=0).clamp(min=1), torch.tensor([[1.0], [0.0]]).to(both))
    evidence.mean[first] = (share * evidence.mean[rows]).sum(dim=0)
    evidence.visits[first] += evidence.visits[second]
    evidence.total[first] += evidence.total[second]
    for name in HIGHER:
        if name in arrays:
            arrays[name][first] = torch.maximum(arrays[name][first], arrays[name][second])
    evidence.visited(torch.tensor([first]), before)
    evidence.remove(old)
