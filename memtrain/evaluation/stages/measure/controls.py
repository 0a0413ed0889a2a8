"""Controls of an evaluation: a planted copy is found, and an unplanted picture is not.

Planted copies are training pictures after the model's autoencoder, a little brighter and with JPEG, as if the model had
generated them. Every trusted measure of copying has to find them. Its power, stated beside, is the share it finds of
copies with stronger edits. Unplanted pictures are pictures that the model has not seen, also after the autoencoder,
compared with all training pictures. No measure may take one for a copy. Both kinds go through the same code as
generations, so that the controls show a defect of that code.
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
"""Largest number of pictures of each kind."""
BRIGHTER, QUALITY = 1.05, 60
"""Factor of brightness and quality of JPEG of a planted copy."""
GOOD = 0.8
"""Smallest share of planted copies found, and of unplanted pictures not found, for which the controls hold."""


def planted_copies(copies: Tensor) -> Tensor:
    """Make edited copies of images `(n, 3, H, W)` uint8: brighter, and compressed with JPEG."""
    brighter = (copies.float() * BRIGHTER).round().clamp(0, 255).to(torch.uint8)
    edited = [jpeg(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), QUALITY) for image in brighter]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in edited])


def chosen_rows(candidates: Tensor, *, most: int = MOST) -> list[int]:
    """Choose at most `most` of the rows that are true in `candidates` `(P,)`, evenly spread."""
    rows = candidates.nonzero().squeeze(1)
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).round().long()]
    return [int(row) for row in rows]


def summarize_controls(found: Mapping[str, tuple[Tensor, Tensor]], *, level: float = 0.95) -> dict[str, Any]:
    """Summarize the controls.

    Args:
        found: whether each picture counts as a copy, by measure `(n,)` bool for planted copies and `(m,)` bool for
            unplanted pictures.
        level: the coverage of the intervals.

    Returns:
        By measure `planted` and `unplanted` (`n`, `found`, `share`, `interval`), and `hold` (whether both shares reach
        :data:`GOOD`); None if there were no pictures of one kind.
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
