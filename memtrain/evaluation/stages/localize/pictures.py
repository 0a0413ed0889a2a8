"""Files of the images of every condition, for any further metric.

`images/original/0000/seed-0.png` is the unmasked image of the prompt in line 0 with seed 0. `images/refined/` holds the
images under the refined neurons, `images/initial/` and other folders those of the baselines. `images/prompts.csv` lists
the folder of each line. All lines of a repeated prompt name the folder of its first line.

Cost: a 512-pixel PNG takes about half a megabyte, so 500 prompts with 10 seeds in 3 conditions take 8 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from memtrain.evaluation.stages.localize.conditions import MASKED, SEARCHED, UNION, UNMASKED, Conditions
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.files.sheet_cells import write_cells
from memtrain.records import written_whole

FOLDERS = {UNMASKED: "original", MASKED: "refined", UNION: "all_masks"}


def folder_name(condition: str) -> str:
    """Return the folder name of a condition: `original`, `refined_retrigger`, `random`, ..."""
    plain = condition.removesuffix(SEARCHED)
    name = FOLDERS.get(plain, plain.replace(" ", "_"))
    return f"{name}_retrigger" if condition.endswith(SEARCHED) else name


def write_pictures(
    folder: Path, conditions: Conditions, lines: Sequence[PromptToScore], *, first: Sequence[int], seeds: Sequence[int]
) -> None:
    """Write PNGs and the list of prompts.

    Args:
        folder: the folder that gets `images/`; files with the same names are replaced.
        conditions: the conditions with their images.
        lines: all lines of the prompts.
        first: the first line of each prompt of `conditions`.
        seeds: the seeds of the images.
    """
    for name, condition in conditions.found.items():
        for row, images in zip(condition.rows, condition.images, strict=True):
            place = folder / "images" / folder_name(name) / f"{first[row]:04d}"
            place.mkdir(parents=True, exist_ok=True)
            for seed, image in zip(seeds, images, strict=True):
                with written_whole(place / f"seed-{seed}.png") as unfinished:
                    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(unfinished, format="PNG")
    of_text = {lines[number].text: number for number in first}
    with (
        written_whole(folder / "images" / "prompts.csv") as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = (
            [number, f"{of_text[line.text]:04d}", line.text, "" if line.memorized is None else int(line.memorized)]
            for number, line in enumerate(lines)
        )
        write_cells(file, ("line", "folder", "prompt", "memorized"), rows)
