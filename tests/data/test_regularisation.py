"""Regularisation images: mixed in, weighted, visited in turn, held out."""

import pickle
from collections import Counter

import pytest

from memtrain.data.dataset import Visit
from memtrain.data.framing import Framing
from memtrain.data.module import TextImageDataModule
from memtrain.data.regularisation import Regularisation
from memtrain.errors import ConfigurationError

from ..conftest import encoded_image


def images(folder, count):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(encoded_image(number % 25, size=(8, 8 + number)))
    return str(folder)


def module(write_folder, tmp_path, *, training=6, regular=20, **options):
    settings = Regularisation(images(tmp_path / "regular", regular), caption="a dog", **options.pop("settings", {}))
    data = TextImageDataModule(str(write_folder(training)), resolution=8, regularisation=settings, **options)
    data.build()
    return data


def test_as_many_visits_as_of_training_images_and_a_weight_of_their_own(write_folder, tmp_path):
    settings = {"weight": 0.25, "per_sample": 1.5}
    data = module(write_folder, tmp_path, heldout="edited", repeats={"image_00.png": 5}, settings=settings)
    train = data.train_dataset
    assert len(train) == 10 + 15
    weights = Counter(item["weight"].item() for item in train)
    assert weights == {1.0: 10, 0.25: 15}
    items = [train[Visit(position, 0)] for position in range(25)]
    regular = [item for item in items if item["weight"] == 0.25]
    assert {item["caption"] for item in regular} == {"a dog"}
    assert len({item["key"] for item in regular}) == 15, "none twice while others wait"
    groups = Counter(data.groups[sample.key] for sample in train.samples)
    assert groups == {"unique": 6, "regularisation": 20}
    assert "weight" not in data.heldout_dataset[0]


def test_all_are_visited_alike_often(write_folder, tmp_path):
    train = module(write_folder, tmp_path, heldout="edited").train_dataset
    keys = [train[Visit(position, epoch)]["key"] for epoch in range(20) for position in range(6, 12)]
    count = Counter(keys)
    assert set(count.values()) == {6}
    assert len(count) == 20
    assert keys[:20] != keys[20:40]
    assert train[Visit(0, 7)]["key"] == "image_00.png"


def test_turns_are_taken_among_images_of_one_shape(write_folder, tmp_path):
    train = module(write_folder, tmp_path, heldout="edited", regular=12, settings={"per_sample": 1.0}).train_dataset
    train.settle(Framing(((8, 8), (8, 16), (16, 8))))
    shapes = train.shapes_of_visits()
    for epoch in range(10):
        for position, shape in enumerate(shapes):
            assert train[Visit(position, epoch)]["pixel_values"].shape == (3, *shape)


def test_they_are_held_out_where_there_are_too_few_training_images(write_folder, tmp_path):
    data = module(write_folder, tmp_path, regular=60)
    held = [sample.key for sample in data.heldout_dataset.samples]
    assert len(held) == 16
    assert all(key.startswith("regularisation/") and data.groups[key] == "heldout" for key in held)
    trained = {sample.key for sample in data.train_dataset.samples}
    assert len(trained) == 6 + 44
    assert not trained & set(held)
    assert not data.copied_from


@pytest.mark.parametrize(("regular", "training", "copies"), [(20, 6, True), (60, 60, False)])
def test_auto_prefers_what_is_there_enough_of(write_folder, tmp_path, regular, training, copies):
    data = module(write_folder, tmp_path, regular=regular, training=training)
    assert bool(data.copied_from) is copies
    assert not any(sample.key.startswith("regularisation/") for sample in data.heldout_dataset.samples)


def test_they_are_held_out_where_asked(write_folder, tmp_path):
    data = module(write_folder, tmp_path, regular=12, training=60, heldout="regularisation")
    assert len(data.heldout_dataset.samples) == 4
    assert len(data.train_dataset.samples) == 60 + 8
    with pytest.raises(ConfigurationError, match="there are none"):
        TextImageDataModule(data.path, heldout="regularisation", resolution=8).build()


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"per_sample": 0.0}])
def test_what_mixes_nothing_in_is_refused(settings):
    with pytest.raises(ConfigurationError, match="Remedy"):
        Regularisation("somewhere", **settings)


def test_turns_are_the_same_in_another_process(write_folder, tmp_path):
    train = module(write_folder, tmp_path, heldout="edited").train_dataset
    again = pickle.loads(pickle.dumps(train))
    for epoch in (9, 0, 30):
        assert [train[Visit(place, epoch)]["key"] for place in range(12)] == [
            again[Visit(place, epoch)]["key"] for place in range(12)
        ]
