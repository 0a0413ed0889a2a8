"""A finished run read again: its configuration, its data, its pipeline and the prompts that say what is known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from memtrain.cli.run_pictures import Pictures, read_families
from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.prompts import Prompt, PromptToScore
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.functional.keyed_draws import hash_order
from memtrain.functional.pixels import to_uint8
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    HELDOUT,
    NEVER_TRAINED,
    PLANTED,
    REPEATED,
    SHARED_CAPTION,
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
    data.buckets, data.augment = None, None  # pictures are compared with generated ones in one view, of one size
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


class Asked(NamedTuple):
    """The prompts of one group.

    Attributes:
        group: of the prompts.
        dataset: where they are.
        rows: of the dataset.
        of: pictures of the group, asked or not; of shared captions, captions.
    """

    group: str
    dataset: CaptionedImages
    rows: list[int]
    of: int


def choose_prompts(
    pictures: Pictures,
    *,
    most: int,
    unique: int,
    flagged: Collection[str] = (),
    excluded: tuple[CaptionedImages, list[int]] | None = None,
) -> list[Asked]:
    """The prompts of each group: of a picture with several captions two of them, of a shared caption one.

    Args:
        pictures: of the run.
        most: pictures at most in each group, or captions.
        unique: pictures that were trained on once per epoch, whatever `most` is.
        flagged: keys that the run flagged. Those of unique images that are not asked for anyway are a group of their
            own, so that the unique ones stay a random choice.
        excluded: from :func:`excluded_images`.

    Returns:
        Groups, the held-out one last.
    """
    data = pictures.data
    train, held = data.train_dataset, data.heldout_dataset
    assert train is not None
    assert held is not None
    alone = [name for name in pictures.in_group(UNIQUE) if pictures.under_own_caption(name)]
    once = sorted(row for name in alone[:unique] for row in pictures.rows[name])
    suspicious = [row for name in alone[unique:] for row in pictures.rows[name] if train.samples[row].key in flagged]
    chosen = [Asked(UNIQUE, train, once, len(alone))]
    chosen.append(Asked(FLAGGED, train, _choose(train, suspicious, most), len(suspicious)))
    for group, each in ((VARIED_CAPTIONS, CAPTIONS_PER_IMAGE), (VARIED_IMAGES, 1)):
        names = pictures.in_group(group)
        rows = [row for name in names[:most] for row in _choose(train, pictures.rows[name], each)]
        chosen.append(Asked(group, train, rows, len(names)))
    for group in (CANARY, PLANTED, REPEATED):
        names = pictures.in_group(group)
        rows = sorted(row for name in names[:most] for row in pictures.captions_of(name, CAPTIONS_PER_IMAGE))
        chosen.append(Asked(group, train, rows, len(names)))
    shared = pictures.shared_beside([row for one in chosen for row in one.rows])
    chosen.append(Asked(SHARED_CAPTION, train, sorted(shared[:most]), len(shared)))
    if excluded is not None:
        rows = _different(pictures, *excluded)
        chosen.append(Asked(EXCLUDED, excluded[0], _choose(excluded[0], rows, most), len(rows)))
    rows = _different(pictures, held, _held_rows(data, held))
    chosen.append(Asked(HELDOUT, held, _choose(held, rows, most), len(rows)))
    order = [PLANTED, REPEATED, SHARED_CAPTION, UNIQUE, FLAGGED, VARIED_CAPTIONS, VARIED_IMAGES, CANARY]
    return sorted(chosen, key=lambda one: order.index(one.group) if one.group in order else len(order))


def _held_rows(data: TextImageDataModule, held: CaptionedImages) -> list[int]:
    """The held-out samples, without edited copies: these have the captions, and nearly the pictures, of training."""
    return [row for row, sample in enumerate(held.samples) if sample.key not in data.copied_from]


def _different(pictures: Pictures, dataset: CaptionedImages, rows: list[int]) -> list[int]:
    """Of rows that the run did not train on, those of pictures that it did not either, each and its caption once."""
    kept, seen = [], set(pictures.rows)
    for row in rows:
        key = dataset.samples[row].key
        # A picture and a caption may have the same name.
        names = {pictures.name(key), "caption of " + pictures.caption(key)}
        if not names & seen:
            kept.append(row)
            seen |= names
    return kept


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
            remedy="name the prompts with --prompts; `python evaluate.py` says which captions bring back their picture "
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
        return known_prompts(Pictures(self.data, read_families(self.folder, self.data)[0]), most=most)

    def samples(self, *, most: int, unique: int) -> RunSamples:
        """Prompts of every group, as :func:`choose_prompts` takes them, and what they are compared with."""
        data, records = self.data, self.folder / "records"
        train, held = data.train_dataset, data.heldout_dataset
        assert train is not None
        assert held is not None
        evidence = read_table(records, "evidence") if (records / "evidence.parquet").is_file() else None
        families, not_looked_at = read_families(self.folder, data)
        pictures = Pictures(data, families)
        chosen = choose_prompts(
            pictures,
            most=most,
            unique=unique,
            flagged=_flagged(evidence),
            excluded=excluded_images(self.folder, self.config, data),
        )
        return RunSamples(
            prompts=[
                Prompt(one.dataset.samples[row].key, one.dataset.samples[row].caption, one.group)
                for one in chosen
                for row in one.rows
            ],
            own_images=torch.cat([images_of(one.dataset, one.rows) for one in chosen if one.rows]),
            training_images=images_of(train, list(range(len(train.samples)))),
            training_keys=[sample.key for sample in train.samples],
            families=families,
            templates=data.template,
            not_looked_at=not_looked_at,
            population={one.group: one.of for one in chosen if one.group not in NEVER_TRAINED},
            heldout_left_out=sum(pictures.name(sample.key) in pictures.rows for sample in held.samples),
            visits=data.visits_per_epoch,
            evidence=evidence,
            heldout=_heldout(pictures, held),
            config=self.config,
        )


def _heldout(pictures: Pictures, held: CaptionedImages) -> tuple[torch.Tensor, list[str]] | None:
    """Images and captions of the held-out pictures that the run did not train on; None if there are none."""
    rows = [row for row in _held_rows(pictures.data, held) if pictures.name(held.samples[row].key) not in pictures.rows]
    return (images_of(held, rows), [held.samples[row].caption for row in rows]) if rows else None


def _flagged(evidence: pa.Table | None) -> set[str]:
    if evidence is None or "flagged" not in evidence.column_names:
        return set()
    return set(evidence.filter(evidence["flagged"])["key"].to_pylist())
