"""Contact sheet of masked prompts: their own image, and their images under each condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from memtrain.evaluation.report.contact_sheet import ROWS, SheetRow, contact_sheet
from memtrain.evaluation.stages.localize.conditions import MASKED, SEARCHED, UNMASKED, Conditions

SEEDS = 2
"""Number of images per prompt and condition."""
SHOWN = (UNMASKED, MASKED, UNMASKED + SEARCHED, MASKED + SEARCHED)


def write_sheet(path: Path, conditions: Conditions, *, rows: Sequence[int], own_images: Tensor | None) -> None:
    """Write a PNG with a row per prompt: its own image, and its images under each condition.

    Args:
        path: the PNG file.
        conditions: the conditions with their images.
        rows: the prompts, of which the first :data:`ROWS` are shown.
        own_images: the own images, `(P, 3, H, W)` uint8, if they are known.
    """
    shown = [name for name in SHOWN if name in conditions.found]
    sheet = []
    for row in rows[:ROWS]:
        cells = [("own image", own_images[row])] if own_images is not None else []
        for name in shown:
            condition = conditions.found[name]
            images = condition.images[condition.rows.index(row), :SEEDS]
            cells += [(name if seed == 0 else "", image) for seed, image in enumerate(images)]
        sheet.append(SheetRow(conditions.prompts[row].text, cells))
    contact_sheet(path, sheet)
