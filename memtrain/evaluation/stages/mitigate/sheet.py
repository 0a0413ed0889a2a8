"""Contact sheet of a mitigation: memorized and other prompts, without and with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from memtrain.evaluation.report.contact_sheet import ROWS, SheetRow, contact_sheet
from memtrain.evaluation.stages.prompts import PromptToScore

SEEDS = 3
"""Number of images per prompt and condition on a sheet."""
KNOWN = {True: "memorized: ", False: "other: ", None: ""}


def write_sheet(
    path: Path,
    prompts: Sequence[PromptToScore],
    *,
    without: Tensor,
    mitigated: Tensor,
    own_images: Tensor | None = None,
) -> None:
    """Write a PNG with a row per prompt: its own image, and its images without and with the mitigation.

    Args:
        path: the PNG file.
        prompts: the P prompts; two thirds of the :data:`ROWS` rows are memorized prompts, if there are enough.
        without: the images without the mitigation, `(P, K, 3, H, W)` uint8.
        mitigated: the images with the mitigation and the same seeds, of the same shape.
        own_images: the own images, `(P, 3, H, W)` uint8, if they are known.
    """
    rows = []
    for row in _rows(prompts):
        images = [("own image", own_images[row])] if own_images is not None else []
        for title, sampled in (("without", without), ("with the mitigation", mitigated)):
            images += [(title if seed == 0 else "", image) for seed, image in enumerate(sampled[row, :SEEDS])]
        rows.append(SheetRow(KNOWN[prompts[row].memorized] + prompts[row].text, images))
    contact_sheet(path, rows)


def _rows(prompts: Sequence[PromptToScore]) -> list[int]:
    """Choose the rows of the shown prompts, in their order."""
    memorized = [row for row, prompt in enumerate(prompts) if prompt.memorized]
    rest = [row for row, prompt in enumerate(prompts) if not prompt.memorized]
    most = max(ROWS * 2 // 3, ROWS - len(rest))
    return sorted([*memorized[:most], *rest[: ROWS - len(memorized[:most])]])
