"""Controls of an evaluation: a planted copy is found, and an unplanted picture is not.

Planted: training pictures through the model's autoencoder, cut by a twentieth at each side and brightened a little, as
if they had been generated. Every measure of copying that is trusted has to find them. Unplanted: pictures that the
model has not seen, through the autoencoder likewise, held against all training pictures. None of them may be taken for
a copy. Both go through the same code as generations do, so that what is wrong with it is seen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.functional.ranking import proportion_interval

MOST = 16
"""Pictures of each kind."""
CUT = 20
"""Part of a side that is cut off on each side of a planted copy."""
BRIGHTER = 1.05
GOOD = 0.8
"""Share of planted copies that are found, and of unplanted pictures that are not, from which on controls hold."""


def planted_copies(copies: Tensor) -> Tensor:
    """Edited copies of images `(n, 3, H, W)` uint8: cut, enlarged to the old size, brightened."""
    height, width = copies.shape[-2:]
    top, left = max(1, height // CUT), max(1, width // CUT)
    inner = copies[..., top : height - top, left : width - left].float()
    whole = F.interpolate(inner, size=(height, width), mode="bilinear", align_corners=False)
    return (whole * BRIGHTER).round().clamp(0, 255).to(torch.uint8)


def chosen_rows(candidates: Tensor) -> list[int]:
    """At most :data:`MOST` of the rows that are true in `(P,)`, evenly spread."""
    rows = candidates.nonzero().squeeze(1)
    if len(rows) > MOST:
        rows = rows[torch.linspace(0, len(rows) - 1, MOST).round().long()]
    return [int(row) for row in rows]


def summarize_controls(found: Mapping[str, tuple[Tensor, Tensor]], *, level: float = 0.95) -> dict[str, Any]:
    """What the controls say.

    Args:
        found: by measure `(n,)` bool of planted copies and `(m,)` bool of unplanted pictures, taken for copies or not.
        level: coverage of the intervals.

    Returns:
        By measure `planted` and `unplanted` (`n`, `found`, `share`, `interval`) and `hold`, whether a planted copy is
        found and an unplanted picture is not; None where there was nothing to try.
    """
    said = {}
    for name, (planted, unplanted) in found.items():
        both = {"planted": _share(planted, level), "unplanted": _share(unplanted, level)}
        hold = None
        if len(planted) and len(unplanted):
            hold = bool(both["planted"]["share"] >= GOOD and both["unplanted"]["share"] <= 1 - GOOD)
        said[name] = {**both, "hold": hold}
    return said


def _share(found: Tensor, level: float) -> dict[str, Any]:
    k, n = int(found.sum()), len(found)
    interval = list(proportion_interval(k, n, level=level))
    return {"n": n, "found": k, "share": k / n if n else None, "interval": interval}
