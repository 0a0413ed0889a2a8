"""Edited copies in the place of held-out images: what they are, and when they are made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memtrain.data.edited_copies import EDITS, Edit, copies_each, with_edited_copies
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.data.source import open_source
from memtrain.families.table import Families


def test_an_edit_turns_mirrors_and_exchanges_channels() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = Image.fromarray(pixels)
    assert np.array_equal(np.array(Edit(quarters=1).apply(image)), np.rot90(pixels))
    assert np.array_equal(np.array(Edit(quarters=3, mirrored=True).apply(image)), np.rot90(pixels[:, ::-1], 3))
    assert np.array_equal(np.array(Edit(channels="GBR").apply(image)), pixels[..., [1, 2, 0]])


def test_no_edit_leaves_an_image_or_makes_what_another_makes() -> None:
    image = open_source("assets/clipart-pd.tar").load_image(5)
    made = {edit.apply(image).tobytes() for edit in EDITS}
    assert len(made | {image.tobytes()}) == len(EDITS) + 1


@pytest.mark.parametrize(("pictures", "each"), [(1, len(EDITS)), (3, 8), (5, 5), (8, 3), (50, 3)])
def test_fewer_pictures_have_more_copies_each(pictures: int, each: int) -> None:
    assert copies_each(pictures) == each


def test_copies_have_their_pictures_caption_and_names_of_their_own(write_folder: Callable[..., Path]) -> None:
    source = open_source(str(write_folder(10)))
    families = Families(pictures={"image_02.png": "image_01.png", "image_01.png": "image_01.png"})
    made, indices, originals = with_edited_copies(source, range(9), families=families)
    assert len(indices) == 3 * 8 and "image_02.png" not in originals.values(), "one file of a picture is copied"
    for index in indices:
        copy = made.samples[index]
        original = [sample.key for sample in source.samples].index(originals[copy.key])
        assert copy.caption == source.samples[original].caption
        assert made.load_image(index).size == source.load_image(original).size
    assert len({sample.key for sample in made.samples}) == 10 + 24


def test_all_pictures_are_trained_on_where_too_few_could_be_held_out(
    write_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = TextImageDataModule(str(write_folder(20)), resolution=8, duplicates=Duplicates(count=1, repeats=3))
    with caplog.at_level(logging.WARNING):
        data.build()
    assert "20 picture(s) allow 6 held-out ones" in caplog.text and "Edited copies" in caplog.text
    assert data.train_dataset is not None and len(data.train_dataset.samples) == 20
    assert data.heldout_dataset is not None
    assert {sample.key for sample in data.heldout_dataset.samples} == set(data.copied_from)
    assert set(data.copied_from.values()) == set(data.visits_per_epoch)
    assert {data.groups[key] for key in data.copied_from} == {"heldout"}


@pytest.mark.parametrize(
    ("setting", "count", "fraction", "held"),
    [("auto", 24, 0.1, 8), ("auto", 20, 0.0, 0), ("split", 20, 0.1, 6), ("edited", 24, 0.1, 72)],
)
def test_the_setting_decides(
    write_folder: Callable[..., Path], setting: Any, count: int, fraction: float, held: int
) -> None:
    path = str(write_folder(count))
    data = TextImageDataModule(path, heldout=setting, heldout_fraction=fraction, resolution=8)
    data.build()
    assert data.heldout_dataset is not None and len(data.heldout_dataset) == held


def test_other_held_out_images_take_precedence(write_folder: Callable[..., Path]) -> None:
    held = write_folder({"a.png": "class image", "b.png": "another"}, name="class")
    data = TextImageDataModule(str(write_folder(6)), heldout_path=str(held), heldout="edited", resolution=8)
    data.build()
    assert data.heldout_dataset is not None and len(data.heldout_dataset) == 2 and not data.copied_from
