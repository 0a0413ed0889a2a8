"""Which prompts of a mitigation are shown to the eye: memorized ones and others, without it and with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from memtrain.evaluation.report.contact_sheet import ROWS, SheetRow, contact_sheet
from memtrain.evaluation.stages.prompts import PromptToScore

SEEDS = 3
"""Images per prompt and condition on a sheet."""
KNOWN = {True: "memorized: ", False: "other: ", None: ""}


def write_sheet(
    path: Path,
    prompts: Sequence[PromptToScore],
    *,
    without: Tensor,
    mitigated: Tensor,
    own_images: Tensor | None = None,
) -> None:
    """Write a PNG: a row per prompt with its own image, its images without the mitigation, and with it.

    Args:
        path: of the PNG.
        prompts: P prompts; of :data:`ROWS` on the sheet two thirds are memorized ones, if there are enough.
        without: `(P, K, 3, H, W)` uint8.
        mitigated: as many, of the same seeds.
        own_images: `(P, 3, H, W)` uint8, if they are known.
    """
    rows = []
    for row in _rows(prompts):
        images = [("own image", own_images[row])] if own_images is not None else []
        for title, sampled in (("without", without), ("with the mitigation", mitigated)):
            images += [(title if seed == 0 else "", image) for seed, image in enumerate(sampled[row, :SEEDS])]
        rows.append(SheetRow(KNOWN[prompts[row].memorized] + prompts[row].text, images))
    contact_sheet(path, rows)


def _rows(prompts: Sequence[PromptToScore]) -> list[int]:
    """Which prompts are shown, in their order."""
    memorized = [row for row, prompt in enumerate(prompts) if prompt.memorized]
    rest = [row for row, prompt in enumerate(prompts) if not prompt.memorized]
    most = max(ROWS * 2 // 3, ROWS - len(rest))
    return sorted([*memorized[:most], *rest[: ROWS - len(memorized[:most])]])
