"""Captions in text files beside the images."""

import pytest

from memtrain.data.sidecar import SidecarSource
from memtrain.data.source import open_source
from memtrain.errors import DataError

from ..conftest import encoded_image


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(["10_dog/a.png", "10_dog/b.jpg", "c.webp"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded_image(index))
    (tmp_path / "10_dog" / "a.txt").write_text("a dog, outside\n\nthe dog outside\n", encoding="utf-8-sig")
    (tmp_path / "10_dog" / "b.caption").write_text("a dog inside")
    (tmp_path / "c.txt").write_text("a cat")
    (tmp_path / "c.caption").write_text("ignored")
    (tmp_path / ".c.png").write_bytes(b"left by a system")
    (tmp_path / "c.mask.png").write_bytes(b"a mask")
    (tmp_path / "notes.txt").write_text("of no image")
    return tmp_path


def test_captions_and_keys(folder):
    source = open_source(str(folder))
    assert isinstance(source, SidecarSource)
    assert [(one.key, one.caption, one.alternatives) for one in source.samples] == [
        ("10_dog/a.png", "a dog, outside", ("the dog outside",)),
        ("10_dog/b.jpg", "a dog inside", ()),
        ("c.webp", "a cat", ()),
    ]
    assert source.load_image(1).getpixel((0, 0))[0] in range(8, 13)
    assert source.stored_in(2) == folder / "c.webp"


def test_images_without_a_caption_are_refused_or_get_the_one_for_all(folder):
    (folder / "c.txt").unlink()
    (folder / "c.caption").write_text(" \n")
    with pytest.raises(DataError, match=r"1 of 3 image\(s\)[\s\S]*c\.webp[\s\S]*captions\.default"):
        open_source(str(folder))
    assert [one.caption for one in open_source(str(folder), caption="a photo").samples][2] == "a photo"


def test_a_folder_of_nothing_but_images_takes_one_caption_for_all(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded_image())
    with pytest.raises(DataError, match=r"holds 1 image\(s\) and no captions[\s\S]*captions\.default"):
        open_source(str(tmp_path))
    (sample,) = open_source(str(tmp_path), caption="sks dog").samples
    assert (sample.key, sample.caption) == ("a.png", "sks dog")


def test_captions_have_to_be_utf8(folder):
    (folder / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"c\.txt is not UTF-8"):
        open_source(str(folder))


def test_metadata_goes_before_text_files(folder):
    (folder / "metadata.csv").write_text("file_name,text\n10_dog/a.png,x\n10_dog/b.jpg,y\nc.webp,z\n")
    assert [one.caption for one in open_source(str(folder)).samples] == ["x", "y", "z"]
