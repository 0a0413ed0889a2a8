"""A finished run read again: its configuration, its data, its pipeline and the prompts that say what is known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import RunSamples
from memtrain.evaluation.stages.prompts import Prompt, PromptToScore
from memtrain.functional.keyed_draws import hash_order
from memtrain.functional.pixels import to_uint8
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    HELDOUT,
    PLANTED,
    UNIQUE,
    VARIED_CAPTIONS,
    VARIED_IMAGES,
    read_table,
)

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
    return config, _built(config["data"], path)


def _built(settings: dict[str, Any], path: Path) -> TextImageDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": settings})).data
    if not isinstance(data, TextImageDataModule):
        raise ConfigurationError(
            f"{path} names {type(data).__name__} as its data",
            expected="TextImageDataModule, whose training images evaluation compares with",
            remedy="call memtrain.evaluation.stages.measure.evaluate_run with your own images",
        )
    data.build()
    return data


def excluded_images(
    folder: Path, config: dict[str, Any], data: TextImageDataModule
) -> tuple[CaptionedImages, list[int]] | None:
    """The images that a run was told to leave out, and what was made of them; None if there are none.

    Args:
        folder: of the run.
        config: of the run.
        data: of the run.

    Returns:
        A dataset and its rows.
    """
    if not data.exclude:
        return None
    settings = {**config["data"], "init_args": {**config["data"]["init_args"], "exclude": None}}
    complete = _built(settings, folder / "config.yaml").train_dataset
    assert complete is not None
    return complete, [row for row, one in enumerate(complete.samples) if one.key not in data.visits_per_epoch]


def images_of(dataset: CaptionedImages, rows: list[int]) -> torch.Tensor:
    """`(len(rows), 3, H, W)` uint8."""
    return torch.stack([to_uint8(dataset.pixel_values(row)) for row in rows])


def _choose(dataset: CaptionedImages, rows: list[int], most: int) -> list[int]:
    """At most `most` of `rows`, the same ones in every evaluation."""
    return sorted(sorted(rows, key=lambda row: hash_order(dataset.samples[row].key, "evaluation"))[:most])


def choose_prompts(
    data: TextImageDataModule,
    *,
    most: int,
    unique: int,
    flagged: Collection[str] = (),
    excluded: tuple[CaptionedImages, list[int]] | None = None,
) -> list[tuple[str, CaptionedImages, list[int]]]:
    """Per group the dataset and the rows to sample: of a template two captions, or one of its images' caption.

    Args:
        data: of the run, built.
        most: rows at most in each group, or templates.
        unique: rows of images that were trained on once per epoch, whatever `most` is.
        flagged: keys that the run flagged. Those of unique images that are not asked for anyway are a group of their
            own, so that the unique ones stay a random choice.
        excluded: from :func:`excluded_images`.

    Returns:
        Group, dataset and rows; the held-out group is the last.
    """
    train, held = data.train_dataset, data.heldout_dataset
    assert train is not None
    assert held is not None
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(train.samples):
        rows.setdefault(data.groups[sample.key], []).append(row)
    once = _choose(train, rows.get(UNIQUE, []), unique)
    suspicious = [row for row in rows.get(UNIQUE, []) if train.samples[row].key in flagged and row not in once]
    chosen = [
        (PLANTED, train, _choose(train, rows.get(PLANTED, []), most)),
        (UNIQUE, train, once),
        (FLAGGED, train, _choose(train, suspicious, most)),
    ]
    for group, each in ((VARIED_CAPTIONS, CAPTIONS_PER_IMAGE), (VARIED_IMAGES, 1)):
        variants: dict[str, list[int]] = {}
        for row in rows.get(group, []):
            variants.setdefault(data.template[train.samples[row].key], []).append(row)
        templates = sorted(variants, key=lambda key: hash_order(key, "evaluation"))[:most]
        chosen.append((group, train, [row for key in templates for row in _choose(train, variants[key], each)]))
    chosen.append((CANARY, train, _choose(train, rows.get(CANARY, []), most)))
    if excluded is not None:
        chosen.append((EXCLUDED, excluded[0], _choose(*excluded, most)))
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


@dataclass(frozen=True)
class FinishedRun:
    """A run as the stages of an evaluation ask for it; a :class:`memtrain.evaluation.stages.base.Run`.

    Attributes:
        folder: of the run.
        config: its configuration.
        data: its data, built again.
    """

    folder: Path
    config: dict[str, Any]
    data: TextImageDataModule

    @staticmethod
    def read(folder: Path) -> FinishedRun:
        """The run of a folder.

        Raises:
            ConfigurationError: if it is none.
        """
        return FinishedRun(folder, *run_data(folder))

    def known_prompts(self, *, most: int) -> tuple[list[PromptToScore], torch.Tensor]:
        """See :func:`known_prompts`."""
        return known_prompts(self.data, most=most)

    def samples(self, *, most: int, unique: int) -> RunSamples:
        """Prompts of every group, as :func:`choose_prompts` takes them, and what they are compared with."""
        data, records = self.data, self.folder / "records"
        train, held = data.train_dataset, data.heldout_dataset
        assert train is not None
        assert held is not None
        evidence = read_table(records, "evidence") if (records / "evidence.parquet").is_file() else None
        chosen = choose_prompts(
            data,
            most=most,
            unique=unique,
            flagged=_flagged(evidence),
            excluded=excluded_images(self.folder, self.config, data),
        )
        return RunSamples(
            prompts=[
                Prompt(dataset.samples[row].key, dataset.samples[row].caption, group)
                for group, dataset, rows in chosen
                for row in rows
            ],
            own_images=torch.cat([images_of(dataset, rows) for _, dataset, rows in chosen if rows]),
            training_images=images_of(train, list(range(len(train.samples)))),
            training_keys=[sample.key for sample in train.samples],
            templates=data.template,
            visits=data.visits_per_epoch,
            evidence=evidence,
            heldout=(images_of(held, list(range(len(held.samples)))), [sample.caption for sample in held.samples]),
            config=self.config,
        )


def _flagged(evidence: pa.Table | None) -> set[str]:
    if evidence is None or "flagged" not in evidence.column_names:
        return set()
    return set(evidence.filter(evidence["flagged"])["key"].to_pylist())
