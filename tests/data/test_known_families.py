"""Families of a data source, and what they change in the data module."""

import pytest

from memtrain.data.known_families import DataScan, read_families, with_made
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.errors import DataError
from memtrain.families.table import Families
from memtrain.records import HELDOUT, PLANTED, REPEATED, UNIQUE, VARIED_CAPTIONS, VARIED_IMAGES

KEYS = [f"image_{index:02}.png" for index in range(20)]


@pytest.fixture
def module(write_folder, tmp_path):
    """Builds a data module on 20 images, the last six of which are three pictures."""
    names = {KEYS[14 + index]: KEYS[14 + index - index % 2] for index in range(6)}

    def build(**options):
        path = tmp_path / "families.parquet"
        Families(names).write(path, KEYS)
        data = TextImageDataModule(
            str(write_folder(20)), families=str(path), resolution=8, heldout_fraction=0.2, **options
        )
        data.build()
        return data

    return build


def test_pictures_of_several_files_are_a_group_and_are_held_out_whole(module):
    data = module()
    trained = {sample.key for sample in data.train_dataset.samples}
    held = {sample.key for sample in data.heldout_dataset.samples}
    pictures = data.families.picture
    assert not {pictures(key) for key in trained} & {pictures(key) for key in held}
    assert len({pictures(key) for key in held}) == len(held)
    for key in trained:
        files = [other for other in trained if pictures(other) == pictures(key)]
        assert data.groups[key] == (REPEATED if len(files) > 1 else UNIQUE)
    assert {data.groups[key] for key in held} == {HELDOUT}


def test_what_is_made_belongs_to_its_original(module):
    data = module(duplicates=Duplicates(count=1, repeats=4, varied_captions=1, varied_images=1, variants=2))
    for key, group in data.groups.items():
        original = data.template.get(key)
        if group == VARIED_CAPTIONS:
            assert data.families.picture(key) == data.families.picture(original)
            assert data.families.caption(key) == key
        elif group == VARIED_IMAGES:
            assert data.families.caption(key) == data.families.caption(original)
    assert sorted(data.groups.values()).count(PLANTED) == 1
    assert with_made(Families(), [], KEYS) == Families()


def test_without_families_every_file_is_a_picture(write_folder):
    data = TextImageDataModule(str(write_folder(20)), families="off", resolution=8)
    data.build()
    assert data.families is None


def test_copies_are_found_without_being_told(write_folder, tmp_path):
    folder = write_folder(20)
    (folder / "image_07.png").write_bytes((folder / "image_05.png").read_bytes())
    data = TextImageDataModule(str(folder), resolution=8, scan=DataScan(folder=str(tmp_path / "kept")))
    data.prepare_data()
    kept = list((tmp_path / "kept").glob("*/families.parquet"))
    data.build()
    assert data.families.picture("image_07.png") == data.families.picture("image_05.png") == "image_05.png"
    assert len(kept) == 1
    again = TextImageDataModule(str(folder), families=str(kept[0]), resolution=8)
    again.build()
    assert again.families == data.families


def test_a_table_of_other_data_is_refused(tmp_path):
    path = tmp_path / "families.parquet"
    Families().write(path, KEYS[:5])
    with pytest.raises(DataError, match="lacks 15 of 20 sample"):
        read_families(str(path), KEYS)
