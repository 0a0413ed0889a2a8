"""A finished run read again: its configuration, its data, its pipeline and the prompts that say what is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch import LightningDataModule

from memtrain.cli.asked_pictures import choose_prompts, column_of, samples_of
from memtrain.cli.command_parser import object_of
from memtrain.cli.planted_secrets import border_secrets, canary_secrets
from memtrain.cli.run_pictures import Pictures, read_families
from memtrain.cli.training_pictures import images_of
from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.many_images import Bounds
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.files.yaml_file import read_mapping
from memtrain.records import (
    HELDOUT,
    PLANTED,
    read_table,
)


def pipeline_folder(run: Path) -> Path:
    """Where a run left its trained pipeline.

    Raises:
        ConfigurationError: if it left none.
    """
    if not (run / "pipeline" / "model_index.json").is_file():
        raise ConfigurationError(
            f"{run} holds no trained pipeline", expected="the folder pipeline/", remedy="let the training end"
        )
    return run / "pipeline"


def run_data(folder: Path) -> tuple[dict[str, Any], TextImageDataModule]:
    """The configuration of a run, and its data built again."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} is no run: it has no config.yaml",
            expected="the folder of a finished training run",
            remedy="train first (memtrain train), or name the folder with --run",
        )
    config = read_mapping(path)
    if not isinstance(config.get("data"), dict):
        raise ConfigurationError(
            f"{path} names no data",
            expected="the configuration that memtrain wrote to its run folder",
            remedy="name the folder of a training run with --run",
        )
    return config, _built(config["data"], path)


def _built(settings: dict[str, Any], path: Path) -> TextImageDataModule:
    data = object_of(LightningDataModule, settings, f"{path}, data")
    if not isinstance(data, TextImageDataModule):
        raise ConfigurationError(
            f"{path} names {type(data).__name__} as its data",
            expected="TextImageDataModule, whose training images evaluation compares with",
            remedy=f"compare with images on the disk (memtrain measure --model {path.parent / 'pipeline'} "
            "--data IMAGES), or call memtrain.evaluation.stages.measure.evaluate_run with your own",
        )
    data.buckets, data.augment = None, None  # pictures are compared with generated ones in one view, of one size
    if (path.parent / "index").is_dir():
        data.run_folder = path.parent  # what training listed is read again
    scanned = path.parent / "families"
    if data.scan.folder is None and scanned.is_dir():
        # What training found is read again instead of scanned for again.
        data.scan = replace(data.scan, folder=str(scanned))
    data.build()
    return data


def excluded_images(
    folder: Path, config: dict[str, Any], data: TextImageDataModule
) -> tuple[CaptionedImages, list[int]] | None:
    """The images that a run was told to leave out, and what was made of them; None if there are none.

    Args:
        folder: the folder of the run.
        config: the configuration of the run.
        data: the data of the run.

    Returns:
        A dataset and its rows.
    """
    if not data.exclude:
        return None
    settings = {**config["data"], "init_args": {**config["data"]["init_args"], "exclude": None}}
    complete = _built(settings, folder / "config.yaml").train_dataset
    assert complete is not None
    return complete, [row for row, one in enumerate(complete.samples) if one.key not in data.visits_per_epoch]


def known_prompts(pictures: Pictures, *, most: int) -> tuple[list[PromptToScore], torch.Tensor]:
    """Captions of planted images, memorized, and of held-out ones, not; with their images `(P, 3, H, W)` uint8.

    Each caption is there once, a planted one as planted, with the first image it belongs to.

    Raises:
        ConfigurationError: if nothing was planted.
    """
    chosen = {one.group: one for one in choose_prompts(pictures, most=most, unique=0)}
    if not chosen[PLANTED].rows:
        raise ConfigurationError(
            "No image was planted in this run, so no caption is known to be memorized",
            expected="a run with data.init_args.duplicates",
            remedy="name the prompts with --prompts; `memtrain measure` says which captions bring back their picture "
            "(evaluation/samples.parquet, `prompt_reproduced`)",
        )
    found: dict[str, tuple[bool, CaptionedImages, int]] = {}
    for group in (PLANTED, HELDOUT):
        dataset = chosen[group].dataset
        for row in chosen[group].rows:
            found.setdefault(dataset.samples[row].caption, (group == PLANTED, dataset, row))
    prompts = [PromptToScore(caption, planted) for caption, (planted, _, _) in found.items()]
    return prompts, torch.cat([images_of(dataset, [row]) for _, dataset, row in found.values()])


@dataclass(frozen=True)
class FinishedRun:
    """A run as the stages of an evaluation ask for it; a :class:`memtrain.evaluation.stages.run_samples.Run`.

    Attributes:
        folder: the folder of the run.
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

    def at(self, pipeline: Any) -> FinishedRun:
        """The same; the run's configuration says at which size."""
        return self

    def known_prompts(self, *, most: int) -> tuple[list[PromptToScore], torch.Tensor]:
        """See :func:`known_prompts`."""
        return known_prompts(Pictures(self.data, read_families(self.folder, self.data)[0]), most=most)

    def samples(
        self,
        *,
        most: int,
        unique: int,
        group_by: str | None = None,
        store: Path | None = None,
        bounds: Bounds | None = None,
    ) -> RunSamples:
        """Prompts of every group, as :func:`choose_prompts` takes them, and what they are compared with."""
        records = self.folder / "records"
        evidence = read_table(records, "evidence") if (records / "evidence.parquet").is_file() else None
        families, not_looked_at = read_families(self.folder, self.data)
        pictures = Pictures(self.data, families)
        chosen = choose_prompts(
            pictures,
            most=most,
            unique=unique,
            flagged=_flagged(evidence),
            excluded=excluded_images(self.folder, self.config, self.data),
        )
        bounds = bounds or Bounds()
        bounds = replace(bounds, index=bounds.index or self.folder / "training_index")
        found = samples_of(pictures, chosen, config=self.config, store=store, bounds=bounds, scan=_scan_of(self.data))
        grouped = column_of(self.data, group_by) if group_by is not None else None
        return replace(
            found,
            not_looked_at=not_looked_at,
            evidence=evidence,
            grouped_by=grouped,
            canaries=canary_secrets(self.data),
            borders=border_secrets(self.data, repeated=most, unique=unique, heldout=most),
        )


def _flagged(evidence: pa.Table | None) -> set[str]:
    if evidence is None or "flagged" not in evidence.column_names:
        return set()
    return set(evidence.filter(evidence["flagged"])["key"].to_pylist())


def _scan_of(data: TextImageDataModule) -> Path | None:
    """Where training looked at the pictures, if it did."""
    return Path(data.scan.folder) if data.scan.folder is not None and data.families is not None else None
