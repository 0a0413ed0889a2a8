"""Made samples behind those of a source: keys, captions, images, visits."""

import pickle

import numpy as np
import pytest

from memtrain.data.canaries import Canaries, canary_caption, draw_canary
from memtrain.data.image_folder import ImageFolderSource
from memtrain.data.planted import PlantedSource, make_canaries, make_templates, was_made
from memtrain.data.selection import Duplicates
from memtrain.data.source import Sample
from memtrain.errors import DataError


@pytest.fixture
def source(write_folder):
    return ImageFolderSource(write_folder(4))


@pytest.fixture
def planted(source):
    duplicates = Duplicates(varied_captions=1, varied_images=1, variants=3, repeats=(5, 11))
    made = make_templates(source.samples, {2: "varied_captions", 0: "varied_images"}, duplicates)
    return PlantedSource(source, made + make_canaries(Canaries(count=2, repeats=7, seed=4)))


def test_own_samples_come_first_and_unchanged(source, planted):
    assert planted.samples[:4] == source.samples
    assert planted.path == source.path
    for index in range(4):
        assert planted.open_image(index).tobytes() == source.load_image(index).tobytes()
        assert planted.load_image(index).tobytes() == source.load_image(index).tobytes()


def test_keys_captions_visits_and_groups(source, planted):
    assert [(one.sample.key, one.group, one.visits, one.original) for one in planted.made] == [
        ("image_02.png#caption0", "varied_captions", 4, 2),
        ("image_02.png#caption1", "varied_captions", 4, 2),
        ("image_02.png#caption2", "varied_captions", 3, 2),
        ("image_00.png#image0", "varied_images", 4, 0),
        ("image_00.png#image1", "varied_images", 4, 0),
        ("image_00.png#image2", "varied_images", 3, 0),
        ("canary#0", "canary", 7, None),
        ("canary#1", "canary", 7, None),
    ]
    captions = [sample.caption for sample in planted.samples[4:]]
    assert captions[0] == source.samples[2].caption
    assert len(set(captions[:3])) == 3
    assert set(captions[3:6]) == {source.samples[0].caption}
    assert captions[6:] == [canary_caption(4, 0), canary_caption(4, 1)]


def test_images(source, planted):
    same = source.load_image(2).tobytes()
    assert [planted.load_image(index).tobytes() == same for index in (4, 5, 6)] == [True] * 3
    assert planted.load_image(7).tobytes() == source.load_image(0).tobytes()
    varied = [np.asarray(planted.load_image(index), dtype=float) for index in (7, 8, 9)]
    assert all(np.abs(varied[a] - varied[b]).mean() > 10 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert planted.load_image(11).tobytes() == draw_canary(4, 1).tobytes()


def test_varied_images_keep_the_other_captions(source):
    samples = [Sample("a", "x", ("y",))]
    made = make_templates(samples, {0: "varied_images"}, Duplicates(varied_images=1, variants=2))
    assert [one.sample.alternatives for one in made] == [("y",), ("y",)]


def test_it_travels_to_worker_processes(planted):
    copy = pickle.loads(pickle.dumps(planted))
    assert all(copy.load_image(i).tobytes() == planted.load_image(i).tobytes() for i in range(len(planted)))


def test_key_that_is_taken(write_folder):
    source = ImageFolderSource(write_folder({"canary#0": "a bird", "b.png": "x"}))
    with pytest.raises(DataError, match=r"name more than one sample in .*, first \['canary#0'\]"):
        PlantedSource(source, make_canaries(Canaries(count=1)))


def test_no_path_is_opened_as_one(write_folder):
    assert not PlantedSource.accepts(str(write_folder(2)))


def test_names_of_made_samples_are_known_again(source, planted):
    keys = {sample.key for sample in source.samples}
    assert all(was_made(one.sample.key, keys) for one in planted.made)
    others = ["image_02.png", "cat.png#caption0", "image_02.png#0", "canary#caption1", "canary#", "image_02.png#image"]
    assert not any(was_made(key, keys) for key in others)
