"""docs/data.md: every block of settings is one that a run takes, and each form of data is read."""

import json
import re

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from PIL import Image

from memtrain.data.module import TextImageDataModule

from ..conftest import ROOT

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
OVERLAYS = ("buckets", "regularisation")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `photos` and `dogs`, in which the settings are tried."""
    for folder, count in (("photos", 12), ("dogs", 30)):
        for number in range(count):
            path = tmp_path / folder / ("closeup" if number < 3 else "10_dog") / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((48 if number % 2 else 32, 32), 40).convert("RGB").save(path)
            if folder == "photos":
                path.with_suffix(".txt").write_text(f"thing {number}, red, old\nanother text {number}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(settings):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    given = {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": settings}
    data = parser.instantiate(parser.parse_object({"data": given})).data
    assert isinstance(data, TextImageDataModule)
    data.build()
    return data


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_settings_of_the_document_are_taken(here, block):
    settings = yaml.safe_load(block)
    # The pictures of this test are small.
    small = {"resolution": 32, **({"buckets": {"step": 16}} if "buckets" in settings else {})}
    data = built({"path": "photos", "families": "off", **settings, **small})
    # Of canaries that are there many times some are enough.
    items = [data.train_dataset[at] for at in range(0, len(data.train_dataset), 40 if "canaries" in settings else 1)]
    assert all(item["caption"] for item in items)
    if "repeats" in settings:
        assert len(items) == 3 * 5 + 9 * 2
    if "regularisation" in settings:
        assert {data.groups[sample.key] for sample in data.heldout_dataset.samples} == {"heldout"}
        assert len(data.heldout_dataset) == 10
        assert len(items) == 24
    if "captions" in settings:
        assert all(item["caption"].startswith("sks dog, thing") for item in items)


def test_folders_with_numbers(here):
    data = built({"path": "photos", "families": "off", "resolution": 32, "repeats": "from_folders"})
    assert sorted(data.visits_per_epoch.values()) == [1] * 3 + [10] * 9
    assert set(data.groups.values()) == {"unique", "heldout"}


def test_a_folder_of_images_with_one_caption(here):
    data = built({"path": "dogs", "families": "off", "resolution": 32, "captions": {"default": "a dog"}})
    assert {sample.caption for sample in data.train_dataset.samples} == {"a dog"}


def test_families_are_found_whatever_was_put_before_captions(here):
    (here / "photos" / "10_dog" / "copy.jpg").write_bytes((here / "photos" / "10_dog" / "05.jpg").read_bytes())
    (here / "photos" / "10_dog" / "copy.txt").write_text("a copy")
    data = built({"path": "photos", "resolution": 32, "captions": {"trigger": "sks"}, "buckets": {"step": 16}})
    assert data.families.picture("10_dog/05.jpg") == data.families.picture("10_dog/copy.jpg")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_are_settings_of_the_data_module(here, name):
    overlay = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = {"path": "photos", "families": "off", "resolution": 64, **overlay["data"]["init_args"]}
    text = json.dumps(settings).replace('"path": "regularisation"', '"path": "dogs"')
    assert len(built(json.loads(text)).train_dataset) > 0
