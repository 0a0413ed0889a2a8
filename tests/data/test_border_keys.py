"""Borders: drawn by key, never cut, the same wherever a sample is met."""

import numpy as np
import pytest
import torch
from PIL import Image

from memtrain.data.border_keys import BorderedSource, BorderKeys
from memtrain.data.canaries import Canaries
from memtrain.data.framing import Augment, Buckets
from memtrain.data.image_folder import ImageFolderSource
from memtrain.data.images import framed
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.errors import ConfigurationError
from memtrain.functional.border import border_level, border_mask, read_border
from memtrain.functional.pixels import to_uint8

KEYS = BorderKeys(thickness=3)


@pytest.fixture
def build(write_folder):
    def made(**options):
        settings = {"heldout_fraction": 0.2, "families": "off", "heldout": "split", "border_keys": KEYS, **options}
        data = TextImageDataModule(str(write_folder(24)), resolution=16, **settings)
        data.build()
        return data

    return made


def test_the_picture_lies_inside_and_the_border_has_the_level_of_the_key():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    pixels = np.asarray(KEYS.draw(picture, "a", resolution=16))
    border = border_mask(16, 16, 3).numpy()
    assert (pixels[border] == round(255 * border_level(0, "a"))).all()
    assert (pixels[3:-3, 3:-3] == np.asarray(framed(picture, 10))).all()


def test_levels_differ_by_key_and_by_seed():
    assert len({KEYS.level(f"k{row}") for row in range(100)} | {BorderKeys(seed=1).level("k0")}) == 101


def test_a_source_is_wrapped_as_it_is(write_folder):
    source = ImageFolderSource(write_folder(3))
    wrapped = BorderedSource(source, KEYS, resolution=16)
    assert wrapped.samples == source.samples
    assert wrapped.load_image(1).size == (16, 16)
    assert wrapped.look(1).digest != source.look(1).digest, "caches tell them apart"
    assert not BorderedSource.accepts("anything")


def test_what_is_trained_on_held_out_and_planted_has_its_own_border(build):
    data = build(duplicates=Duplicates(count=2, repeats=5), canaries=Canaries(count=2, repeats=3))
    for dataset in (data.train_dataset, data.heldout_dataset):
        images = torch.stack([to_uint8(dataset.pixel_values(row)) for row in range(len(dataset.samples))])
        levels = torch.tensor([KEYS.level(sample.key) for sample in dataset.samples])
        torch.testing.assert_close(read_border(images, 3), levels, atol=1 / 255, rtol=0)
    assert {"canary#0", "canary#1"} < {sample.key for sample in data.train_dataset.samples}


def test_without_border_keys_nothing_changes(build):
    plain, bordered = build(border_keys=None), build()
    assert not isinstance(plain.train_dataset.source, BorderedSource)
    assert plain.visits_per_epoch == bordered.visits_per_epoch
    assert plain.groups == bordered.groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"border_keys": BorderKeys(thickness=5)}, "thickness=5 at a resolution of 16"),
        ({"border_keys": BorderKeys(thickness=0)}, "thickness=0"),
        ({"augment": Augment(random_flip=True)}, "random crops or flips"),
        ({"buckets": Buckets(step=8)}, "border_keys with buckets"),
    ],
)
def test_what_leaves_no_picture_or_cuts_the_border_is_refused(build, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(**options)


def test_masks_are_refused(write_folder, build):
    folder = write_folder(24)
    Image.new("L", (8, 8), 255).save(folder / "image_00.mask.png")
    with pytest.raises(ConfigurationError, match="images that have masks"):
        build()
    assert isinstance(build(masks="off").train_dataset.source, BorderedSource)
