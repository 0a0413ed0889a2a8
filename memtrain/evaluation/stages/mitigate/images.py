"""Files of the images that are sampled with and without a mitigation: a PNG and a row of a table for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from torch import Tensor

from memtrain.evaluation.stages.mitigate.changes import Measured
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.files.whole import written_whole


def write_images(folder: Path, images: Sequence[Tensor], seeds: Sequence[int]) -> list[list[str]]:
    """Save every image.

    Args:
        folder: the folder of the results.
        images: the images without and with the mitigation, `(P, K, 3, H, W)` uint8 each.
        seeds: the K seeds.

    Returns:
        By condition the paths relative to `folder`, in the order of prompts, then seeds.
    """
    paths: list[list[str]] = [[], []]
    for condition, name in enumerate(("without", "with")):
        for number, generated in enumerate(images[condition]):
            place = f"mitigation/{number:04d}"
            for seed, image in zip(seeds, generated, strict=True):
                paths[condition].append(f"{place}/{name}-seed-{seed}.png")
                with written_whole(folder / paths[condition][-1], durable=False) as unfinished:
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(unfinished, "PNG")
    return paths


def images_table(
    prompts: Sequence[PromptToScore],
    seeds: Sequence[int],
    measured: Sequence[Measured],
    moved: Tensor,
    *,
    threshold: float | None,
    paths: list[list[str]],
) -> pa.Table:
    """Make a table with a row per image: first all images without the mitigation, then all with it.

    Args:
        prompts: the P prompts.
        seeds: the K seeds.
        measured: the measurements of both conditions.
        moved: the distance of each mitigated image to the unmitigated image, `(P, K)`.
        threshold: the ratio below which an image counts as reproduced; None if there is no threshold.
        paths: the paths from :func:`write_images`.
    """
    each = [prompt for prompt in prompts for _ in seeds]

    def column(values: Sequence[Tensor | None]) -> list[Any]:
        flat = [[None] * len(each) if value is None else value.flatten().tolist() for value in values]
        return [*flat[0], *flat[1]]

    def spread(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.repeat_interleave(len(seeds))

    ratios = [one.ratio for one in measured]
    below = [None if ratio is None or threshold is None else ratio < threshold for ratio in ratios]
    return pa.table(
        {
            "prompt": [prompt.text for prompt in each] * 2,
            "memorized": pa.array([prompt.memorized for prompt in each] * 2, pa.bool_()),
            "seed": list(seeds) * len(prompts) * 2,
            "mitigated": [False] * len(each) + [True] * len(each),
            "ratio": pa.array(column(ratios), pa.float32()),
            "reproduced": pa.array(column(below), pa.bool_()),
            "distance_to_unmitigated": pa.array(column([None, moved]), pa.float32()),
            "prompt_diversity": pa.array(column([spread(one.diversity) for one in measured]), pa.float32()),
            "fidelity": pa.array(column([one.fidelity for one in measured]), pa.float32()),
            "image": [*paths[0], *paths[1]],
        }
    )
