"""The files of a data folder: which are images, and which names lie in it."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data.folder_files import folder_images, named_file, require_decoded
from memtrain.errors import DataError

PARTS = st.sampled_from(["..", ".", "", "a", "b.png", "link", "\\", "\0", "\ud800", "/", "..\\", "é", "C:", "~", "\n"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b.png").write_bytes(b"x")
    (folder / "link").symlink_to("/usr")
    return folder


@settings(max_examples=50, deadline=None)
@given(st.lists(PARTS, max_size=6).map("/".join) | st.text(max_size=20))
def test_a_name_leads_into_the_folder_or_is_refused(folder, name):
    try:
        found = named_file(folder, name, "metadata.jsonl, line 1")
    except DataError as error:
        assert error.problem.startswith("metadata.jsonl, line 1")  # noqa: PT017
        assert "\n" not in error.problem  # noqa: PT017
        return
    assert os.path.abspath(folder / found).startswith(str(folder))
    assert ".." not in Path(found).parts
    assert named_file(folder, found, "") == found, "a name is settled once"


@pytest.mark.parametrize("name", [7, None, ["a.png"], b"a.png", True])
def test_a_name_is_a_text(folder, name):
    with pytest.raises(DataError, match="field x is not a text"):
        named_file(folder, name, "field x")


def test_names_are_found_that_other_systems_wrote(tmp_path):
    composed, parts = unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "ü.png")
    for name in (composed, parts, "a/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert named_file(tmp_path, unicodedata.normalize("NFD", composed), "") == composed
    assert named_file(tmp_path, unicodedata.normalize("NFC", parts), "") == parts
    assert named_file(tmp_path, "a\\b.png", "") == "a/b.png"


def test_images_are_known_by_every_suffix(tmp_path, caplog):
    taken = ["a.JPG", "b.jpeg", "c.jfif", "d.tif", "e.avif", "f.webp", "g.JP2", "h.heic", "k.psd"]
    for name in [*taken, "d.psd", "i.mask.png", ".j.png", "l.txt"]:
        (tmp_path / name).write_bytes(b"x")
    images = folder_images(tmp_path)
    assert [image.name for image in images] == taken
    assert "1 file(s)" in caplog.text
    assert "['d.psd']" in caplog.text
    with pytest.raises(DataError, match=r"2 image\(s\) in .*\(1 \.heic, 1 \.psd\), first \['h\.heic', 'k\.psd'\]"):
        require_decoded(tmp_path, images)


def test_a_link_to_its_own_parent_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert folder_images(tmp_path) == [tmp_path / "a" / "b.png"]
