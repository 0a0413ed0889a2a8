"""A picture that turns out to be another one, met earlier: what was known of it goes over to that one.

An index that grows with the batches may find late that two families are one
(:class:`memtrain.families.online.OnlineFamilies`). Evidence of both is pooled as if their visits had been one
picture's, up to the order in which they came: means are weighted by visits. What was flagged stays flagged.
"""

from __future__ import annotations

import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.levels import PICTURE
from memtrain.evidence.running_means import Evidence


def rename_picture(calibration: Calibration, old: str, new: str) -> None:
    """Let everything that is kept under a picture's name go over to another's."""
    for evidence in (calibration.samples, calibration.heldout):
        if evidence is not None:
            pool_rows(evidence, old, new)
    bulk = calibration.bulk
    for peaks in (calibration.highest, bulk.peak, bulk.early or {}):
        if old in peaks:
            peaks[new] = max(peaks.pop(old), peaks.get(new, float("-inf")))
    levels = calibration.levels
    for names in (bulk.frequent, levels.flagged_pictures):
        if old in names:
            names.discard(old)
            names.add(new)
    crossed = levels.crossed[PICTURE]
    if old in crossed:
        crossed[new] = min(crossed.pop(old), crossed.get(new, 2**62))


def pool_rows(evidence: Evidence, old: str, new: str) -> None:
    """Make the visits of the row `old` visits of the row `new`."""
    if old not in evidence.row:
        return
    first, second = evidence.rows([new, old])
    both = evidence.visits[[first, second]]
    share = torch.where(both.sum(dim=0) > 0, both / both.sum(dim=0).clamp(min=1), torch.tensor([[1.0], [0.0]]).to(both))
    evidence.mean[first] = (share * evidence.mean[[first, second]]).sum(dim=0)
    evidence.dilution[first] = (share.square() * evidence.dilution[[first, second]]).sum(dim=0)
    evidence.visits[first] += evidence.visits[second]
    evidence.total[first] += evidence.total[second]
    kept = [row for row in range(len(evidence.row)) if row != second]
    for name in ("visits", "mean", "dilution", "total"):
        setattr(evidence, name, getattr(evidence, name)[kept])
    evidence.row = {key: row for row, key in enumerate(key for key in evidence.row if key != old)}
