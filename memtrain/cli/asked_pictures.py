"""The choice of the pictures that an evaluation asks for by their captions, and their comparison images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from memtrain.cli.run_pictures import Pictures
from memtrain.cli.training_pictures import features_folder, images_of, index_of, part_of, training_images
from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.data.source import open_source
from memtrain.evaluation.stages.many_images import Bounds
from memtrain.evaluation.stages.null_prompts import framed_null_prompts
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.functional.keyed_draws import hash_order
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    HELDOUT,
    MADE_CAPTION,
    NEVER_TRAINED,
    PLANTED,
    REPEATED,
    SHARED_CAPTION,
    UNIQUE,
    VARIED_CAPTIONS,
    VARIED_IMAGES,
)

NO_CAPTION = "(no caption)"
"""The stand-in for an empty caption while data are read; readers refuse empty captions as mistakes."""
MADE_CAPTIONS = 40
"""Null prompts where no picture is held out: they promise a false-positive rate of one in 41."""
TRIES = 20
"""Times that null prompts are made until there are as many."""
HELDOUT_LOSSES = 2_000
"""Held-out images at most whose loss is measured."""
CAPTIONS_PER_IMAGE = 2
"""Captions sampled of an image that was trained on under many."""


def _choose(dataset: CaptionedImages, rows: list[int], most: int) -> list[int]:
    """At most `most` of `rows`, the same ones in every evaluation."""
    return sorted(sorted(rows, key=lambda row: hash_order(dataset.samples[row].key, "evaluation"))[:most])


class Asked(NamedTuple):
    """The prompts of one group.

    Attributes:
        group: the group of the prompts.
        dataset: the dataset with the pictures.
        rows: the rows of the dataset.
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
        pictures: the pictures of the run.
        most: pictures at most in each group, or captions.
        unique: pictures that were trained on once per epoch, whatever `most` is.
        flagged: keys that the run flagged. Those of unique images that are not asked for anyway are a group of their
            own, so that the unique ones stay a random choice.
        excluded: from :func:`memtrain.cli.run_folder.excluded_images`.

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
    """The rows of pictures that the run did not train on, each picture and each caption once."""
    kept, seen = [], set(pictures.rows)
    for row in rows:
        key = dataset.samples[row].key
        # A picture and a caption may have the same name.
        names = {pictures.name(key), "caption of " + pictures.caption(key)}
        if not names & seen:
            kept.append(row)
            seen |= names
    return kept


def samples_of(
    pictures: Pictures,
    chosen: list[Asked],
    *,
    config: Mapping[str, Any],
    store: Path | None = None,
    bounds: Bounds | None = None,
    scan: Path | None = None,
) -> RunSamples:
    """The prompts of :func:`choose_prompts`, and what they are compared with; made captions where nothing is held out.

    Args:
        pictures: the pictures of the run or folder.
        chosen: the prompts.
        config: where the model and the data come from.
        store: folder for training images that are too many for memory.
        bounds: the number of training images up to which all are compared, and the folder of the index of more.
        scan: folder of a scan of the data, if there is one.
    """
    train, held = pictures.data.train_dataset, pictures.data.heldout_dataset
    assert train is not None
    assert held is not None
    prompts = [
        Prompt(one.dataset.samples[row].key, one.dataset.samples[row].caption, one.group)
        for one in chosen
        for row in one.rows
    ]
    own = [images_of(one.dataset, one.rows) for one in chosen if one.rows]
    if not any(prompt.group == HELDOUT for prompt in prompts):
        made = _made_captions([sample.caption for sample in train.samples])
        prompts += [Prompt(f"made caption {number}", text, MADE_CAPTION) for number, (text, _) in enumerate(made)]
        own += [images_of(train, [row for _, row in made])] if made else []
    own_images, bounds = torch.cat(own), bounds or Bounds()
    part, images = None, own_images[:0]
    if len(train.samples) > bounds.most and bounds.prompts_only:
        index_of(train, bounds=bounds, store=store, scan=scan)[0].build(bounds.part, others=False)
    elif len(train.samples) > bounds.most:
        part = part_of(pictures, prompts, own_images, bounds=bounds, store=store, scan=scan)
        images = part.images
    elif not bounds.prompts_only:
        images = training_images(train, store)
    return RunSamples(
        prompts=prompts,
        own_images=own_images,
        training_images=images,
        features=None if part is not None else features_folder(train, bounds=bounds, store=store),
        training_keys=[sample.key for sample in train.samples] if part is None else part.part_keys,
        part=part,
        families=pictures.families,
        templates=pictures.data.template,
        population={one.group: one.of for one in chosen if one.group not in NEVER_TRAINED},
        heldout_left_out=sum(pictures.name(sample.key) in pictures.rows for sample in held.samples),
        visits=pictures.data.visits_per_epoch,
        heldout=_heldout(pictures, held),
        config=config,
    )


def _made_captions(captions: list[str]) -> list[tuple[str, int]]:
    """Null prompts of captions, each with the index of a caption of its kind; none where all captions are one.

    A model that learned one caption answers to nothing else, and pictures without captions have none to be made of.
    """
    texts = [text for text in dict.fromkeys(captions) if text.strip() and text != NO_CAPTION]
    if len(texts) < 2:
        return []
    made: dict[str, int] = {}
    # Captions of few words do not yield all of them in one go.
    for seed in range(TRIES):
        for text, row in framed_null_prompts(texts, MADE_CAPTIONS - len(made), seed=seed):
            made.setdefault(text, captions.index(texts[row]))
        if len(made) == MADE_CAPTIONS:
            break
    return list(made.items())


def column_of(data: TextImageDataModule, name: str) -> dict[str, str]:
    """A column of the data by key, of what was made of a sample that of the sample.

    Raises:
        DataError: if the data have no such column.
    """
    values = open_source(data.path, caption=data.captions.default or data.captions.trigger).column(name)
    return values | {made: values[origin] for made, origin in data.template.items() if origin in values}


def _heldout(pictures: Pictures, held: CaptionedImages) -> tuple[torch.Tensor, list[str]] | None:
    """Images and captions of the held-out pictures that the run did not train on; None if there are none."""
    rows = [row for row in _held_rows(pictures.data, held) if pictures.name(held.samples[row].key) not in pictures.rows]
    rows = _choose(held, rows, HELDOUT_LOSSES)
    return (images_of(held, rows), [held.samples[row].caption for row in rows]) if rows else None
