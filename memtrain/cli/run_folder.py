"""A finished run read again: its configuration, its data, its pipeline and the prompts that say what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import hash_order
from memtrain.errors import ConfigurationError
from memtrain.evaluation.prompts import PromptToScore
from memtrain.evaluation.summary import CANARY, HELDOUT, PLANTED, UNIQUE, VARIED_CAPTIONS, VARIED_IMAGES

CAPTIONS_PER_IMAGE = 2
"""Captions sampled of an image that was trained on under many."""


def pipeline_folder(run: Path) -> Path:
    """Where a run left its trained pipeline.

    Raises:
        ConfigurationError: if it left none.
    """
    if not (run / "pipeline" / "model_index.json").is_file():
        raise ConfigurationError(
            f"{run} holds no trained pipeline", expected="pipeline/", remedy="let the training run end"
        )
    return run / "pipeline"


def run_data(folder: Path) -> tuple[dict[str, Any], TextImageDataModule]:
    """The configuration of a run, and its data built again."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} is no run: it has no config.yaml",
            expected="the folder of a finished training run",
            remedy="train first (python train.py), or name the folder with --run",
        )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    if not isinstance(data, TextImageDataModule):
        raise ConfigurationError(
            f"{path} names {type(data).__name__} as its data",
            expected="TextImageDataModule, whose training images evaluation compares with",
            remedy="call memtrain.evaluation.runner.evaluate_run with your own images",
        )
    data.build()
    return config, data


def images_of(dataset: CaptionedImages, rows: list[int]) -> torch.Tensor:
    """`(len(rows), 3, H, W)` uint8."""
    pixels = [dataset.pixel_values(row).add(1).mul(127.5).round().to(torch.uint8) for row in rows]
    return torch.stack(pixels)


def _choose(dataset: CaptionedImages, rows: list[int], most: int) -> list[int]:
    """At most `most` of `rows`, the same ones in every evaluation."""
    return sorted(sorted(rows, key=lambda row: hash_order(dataset.samples[row].key, "evaluation"))[:most])


def choose_prompts(
    data: TextImageDataModule, *, most: int, unique: int
) -> list[tuple[str, CaptionedImages, list[int]]]:
    """Per group the dataset and the rows to sample: of a template two captions, or one of its images' caption."""
    train, held = data.train_dataset, data.heldout_dataset
    assert train is not None
    assert held is not None
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(train.samples):
        rows.setdefault(data.groups[sample.key], []).append(row)
    chosen = [
        (PLANTED, train, _choose(train, rows.get(PLANTED, []), most)),
        (UNIQUE, train, _choose(train, rows.get(UNIQUE, []), min(unique, most))),
    ]
    for group, each in ((VARIED_CAPTIONS, CAPTIONS_PER_IMAGE), (VARIED_IMAGES, 1)):
        variants: dict[str, list[int]] = {}
        for row in rows.get(group, []):
            variants.setdefault(data.template[train.samples[row].key], []).append(row)
        templates = sorted(variants, key=lambda key: hash_order(key, "evaluation"))[:most]
        chosen.append((group, train, [row for key in templates for row in _choose(train, variants[key], each)]))
    chosen.append((CANARY, train, _choose(train, rows.get(CANARY, []), most)))
    chosen.append((HELDOUT, held, _choose(held, list(range(len(held.samples))), most)))
    return chosen


def known_prompts(data: TextImageDataModule, *, most: int) -> tuple[list[PromptToScore], torch.Tensor]:
    """Captions of planted images, memorized, and of held-out ones, not; with their images `(P, 3, H, W)` uint8.

    Each caption is there once, a planted one as planted, with the first image it belongs to.

    Raises:
        ConfigurationError: if nothing was planted.
    """
    chosen = {group: (dataset, rows) for group, dataset, rows in choose_prompts(data, most=most, unique=0)}
    if not chosen[PLANTED][1]:
        raise ConfigurationError(
            "No image was planted in this run, so no caption is known to be memorized",
            expected="a run with data.init_args.duplicates",
            remedy="name the prompts with --prompts",
        )
    found: dict[str, tuple[bool, CaptionedImages, int]] = {}
    for group in (PLANTED, HELDOUT):
        dataset, rows = chosen[group]
        for row in rows:
            found.setdefault(dataset.samples[row].caption, (group == PLANTED, dataset, row))
    prompts = [PromptToScore(caption, planted) for caption, (planted, _, _) in found.items()]
    return prompts, torch.cat([images_of(dataset, [row]) for _, dataset, row in found.values()])
