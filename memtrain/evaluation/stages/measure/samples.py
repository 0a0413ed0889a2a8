"""Prompts, their images on disk, and `samples.parquet` with one row per prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.errors import DataError
from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.sampling.generate import Trace
from memtrain.evaluation.stages.measure.copied import Copied
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.files.whole import written_whole
from memtrain.records import NEVER_TRAINED, SHARED_CAPTION


def own_index(
    prompts: Sequence[Prompt], training_keys: Sequence[str], own_images: Tensor, training_images: Tensor
) -> Tensor:
    """Find the index of each prompt's own image among the training images.

    Args:
        prompts: the P prompts.
        training_keys: the M keys of the training images.
        own_images: the own images, `(P, 3, H, W)`.
        training_images: the training images, `(M, 3, H, W)`.

    Returns:
        `(P,)` int64; -1 for held-out and excluded prompts.

    Raises:
        DataError: if prompts, keys and images do not belong together.
    """
    if len(prompts) != len(own_images) or len(training_keys) != len(training_images):
        raise DataError(
            f"{len(prompts)} prompts with {len(own_images)} own images, {len(training_keys)} training keys with "
            f"{len(training_images)} training images",
            expected="one image per prompt and per key",
            remedy="pass prompts and images in the same order",
        )
    position = {key: index for index, key in enumerate(training_keys)}
    keys = {prompt.key for prompt in prompts}
    lost = [prompt.key for prompt in prompts if prompt.group not in NEVER_TRAINED and prompt.key not in position]
    seen = [prompt.key for prompt in prompts if prompt.group in NEVER_TRAINED and prompt.key in position]
    if lost or seen or len(keys) < len(prompts) or len(position) < len(training_keys):
        raise DataError(
            f"{len(lost)} prompt(s) of training groups have no training image (first {lost[:3]}), {len(seen)} held-out "
            f"or excluded prompt(s) have one (first {seen[:3]}), {len(prompts) - len(keys)} prompt key(s) and "
            f"{len(training_keys) - len(position)} training key(s) are repeated",
            expected="keys of training prompts among training_keys, other keys not among them, and no key twice",
            remedy="build prompts and training images from the same data settings as the run",
        )
    return torch.tensor([position.get(prompt.key, -1) for prompt in prompts])


def own_index_of(samples: RunSamples) -> Tensor:
    """Apply :func:`own_index` to these samples."""
    return own_index(samples.prompts, samples.training_keys, samples.own_images, samples.training_images)


def picture_numbers(samples: RunSamples) -> Tensor:
    """Return the number of the picture of each training image, `(M,)` int64; files of one picture share a number."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(samples.picture(key), len(numbers)) for key in samples.training_keys])


def under_one_caption(samples: RunSamples) -> list[list[int]]:
    """Return for each prompt the indices of the training images with its caption; none for prompts never trained on."""
    rows: dict[str, list[int]] = {}
    for index, key in enumerate(samples.training_keys):
        rows.setdefault(samples.caption(key), []).append(index)
    return [
        [] if prompt.group in NEVER_TRAINED else rows.get(samples.caption(prompt.key), []) for prompt in samples.prompts
    ]


def counted_as(samples: RunSamples) -> list[str]:
    """Return for each prompt the name that it is counted by: its picture, or its caption for shared captions."""
    return [
        samples.caption(prompt.key) if prompt.group == SHARED_CAPTION else samples.picture(prompt.key)
        for prompt in samples.prompts
    ]


def write_images(folder: Path, trace: Trace, own_images: Tensor) -> list[tuple[str, list[str]]]:
    """Save every image; return for each prompt the paths of its own image and generations, relative to `folder`."""
    written = []
    for number, (own, generated) in enumerate(zip(own_images, trace.images, strict=True)):
        place = f"images/{number:04d}"
        names = [f"{place}/own.png", *(f"{place}/seed-{seed}.png" for seed in trace.seeds)]
        for name, image in zip(names, (own, *generated), strict=True):
            with written_whole(folder / name, durable=False) as unfinished:
                Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(unfinished, "PNG")
        written.append((names[0], names[1:]))
    return written


def samples_table(
    samples: RunSamples,
    trace: Trace,
    distances: Replication,
    *,
    thresholds: Tensor,
    detectors: Sequence[Detector],
    images: Sequence[tuple[str, list[str]]],
    copied: Sequence[Copied] = (),
) -> pa.Table:
    """Make the table with one row per prompt and seed.

    Args:
        samples: the samples of P prompts. The table names their families and those of the nearest training image. The
            evidence of a prompt goes to `training.<column>`; null if it has none.
        trace: the images and detector readings of the prompts.
        distances: the distances of the images.
        thresholds: the ratio below which an image of each prompt, and the prompt by its best image, counts as
            reproduced, `(P,)`; stored as `ratio_threshold`.
        detectors: the detectors, whose scores per image go to `detector.<name>`.
        images: the paths from :func:`write_images`.
        copied: the measures of copying, whose similarities go to `copy.<name>.own`, `.nearest` and `.nearest_key`.
    """
    limits = thresholds.float()
    prompts, training_keys, evidence = samples.prompts, samples.training_keys, samples.evidence
    seeds = len(trace.seeds)
    nearest = [training_keys[index] for index in distances.nearest.flatten().tolist()]
    each = [prompt for prompt in prompts for _ in trace.seeds]
    columns: dict[str, Any] = {
        "key": [prompt.key for prompt in each],
        "group": [prompt.group for prompt in each],
        "picture_family": [samples.picture(prompt.key) for prompt in each],
        "caption_family": [samples.caption(prompt.key) for prompt in each],
        "caption": [prompt.caption for prompt in each],
        "seed": list(trace.seeds) * len(prompts),
        "ratio": distances.ratio.flatten().numpy(),
        "own_distance": distances.own_distance.flatten().numpy(),
        "neighbour_distance": distances.neighbour_distance.flatten().numpy(),
        "nearest_key": nearest,
        "nearest_picture_family": [samples.picture(key) for key in nearest],
        "nearest_caption_family": [samples.caption(key) for key in nearest],
        "nearest_distance": distances.nearest_distance.flatten().numpy(),
        "ratio_threshold": limits.repeat_interleave(seeds).numpy(),
        "reproduced": (distances.ratio < limits[:, None]).flatten().numpy(),
        "prompt_reproduced": (distances.best < limits).repeat_interleave(seeds).numpy(),
        "image": [name for _, generated in images for name in generated],
        "own_image": [own for own, _ in images for _ in trace.seeds],
    }
    for detector in detectors:
        scores = detector.score_images(trace.readings[detector.name])
        columns[f"detector.{detector.name}"] = scores.flatten().float().numpy()
    for one in copied:
        columns[f"copy.{one.name}.own"] = one.compared.own.flatten().numpy()
        columns[f"copy.{one.name}.nearest"] = one.compared.nearest.flatten().numpy()
        alike = one.compared.nearest_index.flatten().tolist()
        columns[f"copy.{one.name}.nearest_key"] = [training_keys[index] for index in alike]
    if evidence is not None:
        row = {key: index for index, key in enumerate(evidence.column("key").to_pylist())}
        taken = evidence.take(pa.array([row.get(prompt.key) for prompt in each], pa.int64()))
        for name in evidence.column_names:
            if name not in ("key", "caption", "group"):
                columns[f"training.{name}"] = taken.column(name)
    return pa.table(columns)
