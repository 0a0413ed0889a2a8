"""Controls of an evaluation: a planted copy is found, and an unplanted picture is not.

Planted: training pictures through the model's autoencoder, a little brighter and as JPEG, as if they had been
generated. Every measure of copying that is trusted has to find them; how many it finds of copies that are edited more
is its power, which is stated beside. Unplanted: pictures that the model has not seen, through the autoencoder
likewise, held against all training pictures. None of them may be taken for a copy. Both go through the same code as
generations do, so that what is wrong with it is seen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memtrain.evaluation.measures.edits import jpeg
from memtrain.evaluation.stages.measure.counting.shares import counted

MOST = 16
"""Pictures of each kind."""
BRIGHTER, QUALITY = 1.05, 60
"""Of a planted copy."""
GOOD = 0.8
"""Share of planted copies that are found, and of unplanted pictures that are not, from which on controls hold."""


def planted_copies(copies: Tensor) -> Tensor:
    """Edited copies of images `(n, 3, H, W)` uint8: brighter, and through JPEG."""
    brighter = (copies.float() * BRIGHTER).round().clamp(0, 255).to(torch.uint8)
    edited = [jpeg(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), QUALITY) for image in brighter]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in edited])


def chosen_rows(candidates: Tensor, *, most: int = MOST) -> list[int]:
    """At most `most` of the rows that are true in `(P,)`, evenly spread."""
    rows = candidates.nonzero().squeeze(1)
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).round().long()]
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
        both = {
            kind: counted(int(taken.sum()), len(taken), name="found", level=level)
            for kind, taken in (("planted", planted), ("unplanted", unplanted))
        }
        hold = None
        if len(planted) and len(unplanted):
            hold = bool(both["planted"]["share"] >= GOOD and both["unplanted"]["share"] <= 1 - GOOD)
        said[name] = {**both, "hold": hold}
    return said
