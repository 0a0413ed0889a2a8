"""A folder of images with metadata.jsonl."""

import json
import os
import re
from functools import partial

import pytest

from memtrain.data.checking import unreadable
from memtrain.data.image_folder import ImageFolderSource
from memtrain.data.source import open_source
from memtrain.errors import DataError

from ..conftest import encoded_image


def rewrite(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_keys_captions_and_images(write_folder):
    source = ImageFolderSource(write_folder({"b.png": " a boat ", "sub/a.png": "a cat – résumé"}))
    assert [(sample.key, sample.caption) for sample in source.samples] == [
        ("b.png", "a boat"),
        ("sub/a.png", "a cat – résumé"),
    ]
    assert source.load_image(1).getpixel((0, 0)) == (10, 40, 80)


def test_caption_field_and_blank_lines(write_folder):
    folder = write_folder(2)
    rows = [{"file_name": "image_00.png", "caption": "one"}, "", {"file_name": "image_01.png", "text": "two"}]
    rewrite(folder, *rows, " ")
    assert [sample.caption for sample in ImageFolderSource(folder).samples] == ["one", "two"]


def test_byte_order_mark_is_ignored(write_folder):
    folder = write_folder(1)
    path = folder / "metadata.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(ImageFolderSource(folder)) == 1


def test_not_utf8(write_folder):
    folder = write_folder(1)
    (folder / "metadata.jsonl").write_bytes('{"file_name": "image_00.png", "text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8[\s\S]*convert it, for instance with iconv"):
        ImageFolderSource(folder)


def test_not_json(write_folder):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", "text": "x"}, "image_01.png, a cat")
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2 is not JSON"):
        ImageFolderSource(folder)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"file_name": "image_00.png"}, r"\['file_name'\]"),
        ({"text": "x"}, r"\['text'\]"),
        ({"file_name": 7, "text": "x"}, r"\['file_name', 'text'\]"),
        (["image_00.png", "x"], "list"),
    ],
)
def test_line_without_name_or_caption(write_folder, row, found):
    folder = write_folder(1)
    rewrite(folder, row)
    with pytest.raises(DataError, match=rf"line 1 lacks a file name or a caption: found {found}"):
        ImageFolderSource(folder)


@pytest.mark.parametrize("field", ["text", "caption"])
@pytest.mark.parametrize("value", [None, 1984, True, ["a thing", "another thing"], {"en": "a thing"}])
def test_a_caption_of_another_type_is_shown_and_not_called_missing(write_folder, field, value):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", field: value})
    shown = re.escape(json.dumps(value))
    with pytest.raises(
        DataError, match=rf"The caption in .*, line 1 is not a text: found {shown}[\s\S]*list under " f"'texts'"
    ):
        ImageFolderSource(folder)


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "{absolute}"])
def test_path_out_of_the_folder(write_folder, name):
    folder = write_folder(1)
    outside = folder.parent / "outside.png"
    outside.write_bytes(encoded_image())
    rewrite(folder, {"file_name": name.format(absolute=outside), "text": "x"})
    with pytest.raises(DataError, match="line 1 points outside the folder"):
        ImageFolderSource(folder)


def test_links_that_lead_out_of_the_folder_are_followed_and_counted(write_folder, caplog):
    folder = write_folder(1)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "one.png").write_bytes(encoded_image(3))
    (folder / "link.png").symlink_to(outside / "one.png")
    (folder / "more").symlink_to(outside)
    (outside / "back").symlink_to(folder)
    rewrite(folder, *({"file_name": name, "text": "x"} for name in ("image_00.png", "link.png", "more/one.png")))
    source = ImageFolderSource(folder)
    assert [source.load_image(index).getpixel((0, 0))[0] for index in (1, 2)] == [30, 30]
    assert "2 of 3 images" in caplog.text


def test_a_snapshot_of_the_hubs_cache_is_read_without_a_warning(write_folder, caplog):
    folder = write_folder(3, name="cache/snapshots/abc")
    (blobs := folder.parents[1] / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    # Two files of one content are one blob.
    (folder / "again.png").symlink_to("../../blobs/1")
    (blobs / "3").write_text((blobs / "3").read_text() + json.dumps({"file_name": "again.png", "text": "x"}))
    source = open_source(str(folder))
    assert not unreadable(source, range(len(source)))
    assert len(source) == 4
    assert not caplog.text


def test_two_dots_are_taken_out_of_a_name_before_links_are_followed(write_folder):
    folder = write_folder(1)
    (folder.parent / "there" / "below").mkdir(parents=True)
    (folder.parent / "there" / "image_00.png").write_bytes(encoded_image(9))
    (folder / "link").symlink_to(folder.parent / "there" / "below")
    rewrite(folder, {"file_name": "link/../image_00.png", "text": "x"})
    source = ImageFolderSource(folder)
    assert source.samples[0].key == "image_00.png"
    assert source.load_image(0).getpixel((0, 0))[0] == 0


def test_listed_image_is_missing(write_folder):
    folder = write_folder(3)
    (folder / "image_01.png").unlink()
    with pytest.raises(DataError, match=r"1 image\(s\) listed in .* do not exist, first \['image_01\.png'\]"):
        ImageFolderSource(folder)


def test_image_without_a_line(write_folder):
    folder = write_folder(2)
    (folder / "sub").mkdir()
    (folder / "sub" / "photo.JPG").write_bytes(encoded_image(kind="JPEG"))
    with pytest.raises(DataError, match=r"1 image\(s\) in .* have no line in metadata\.jsonl, first \['sub/photo"):
        ImageFolderSource(folder)


def test_other_files_are_ignored(write_folder):
    folder = write_folder(2)
    (folder / "notes.txt").write_text("hello")
    assert len(ImageFolderSource(folder)) == 2


@pytest.mark.parametrize("again", ["image_00.png", "./image_00.png"])
def test_image_listed_twice(write_folder, again):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", "text": "x"}, {"file_name": again, "text": "y"})
    with pytest.raises(DataError, match="name more than one sample"):
        ImageFolderSource(folder)


def test_empty_caption(write_folder):
    with pytest.raises(DataError, match=r"empty caption, first \['b\.png'\]"):
        ImageFolderSource(write_folder({"a.png": "x", "b.png": " "}))


def test_empty_metadata(write_folder):
    with pytest.raises(DataError, match="No captioned image"):
        ImageFolderSource(write_folder(0))


def test_file_that_is_no_image(write_folder):
    folder = write_folder(2)
    (folder / "image_01.png").write_text("not an image")
    source = ImageFolderSource(folder)
    source.load_image(0)
    with pytest.raises(DataError, match=r"'image_01\.png' in .* cannot be read[\s\S]*Remedy: repair or remove"):
        source.load_image(1)


@pytest.mark.parametrize(
    ("row", "caption", "alternatives"),
    [
        ({"texts": [" a cat ", "a pet"]}, "a cat", ("a pet",)),
        ({"text": "a cat", "texts": ["a pet", "a cat", "a pet ", "an animal"]}, "a cat", ("a pet", "an animal")),
        ({"text": "a cat", "texts": []}, "a cat", ()),
        ({"caption": "a cat", "text": "a pet"}, "a pet", ()),
    ],
)
def test_several_captions(write_folder, row, caption, alternatives):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", **row})
    (sample,) = ImageFolderSource(folder).samples
    assert (sample.caption, sample.alternatives) == (caption, alternatives)


@pytest.mark.parametrize("texts", ["a cat", ["a cat", 7], {"a": "b"}, None])
def test_texts_that_are_no_list_of_texts(write_folder, texts):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", "text": "a cat", "texts": texts})
    with pytest.raises(DataError, match=r"line 1 has no list of texts under 'texts': found"):
        ImageFolderSource(folder)


@pytest.mark.parametrize("texts", [[" "], ["a cat", ""]])
def test_empty_text_among_several(write_folder, texts):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", "texts": texts})
    with pytest.raises(DataError, match=r"empty caption, first \['image_00\.png'\]"):
        ImageFolderSource(folder)


def test_no_text_among_texts(write_folder):
    folder = write_folder(1)
    rewrite(folder, {"file_name": "image_00.png", "texts": []})
    with pytest.raises(DataError, match="lacks a file name or a caption"):
        ImageFolderSource(folder)


def test_a_sample_says_which_file_it_is(write_folder):
    folder = write_folder({"a.png": "x", "b/c d.png": "y"})
    source = ImageFolderSource(folder)
    assert [source.stored_in(index) for index in range(2)] == [folder / "a.png", folder / "b" / "c d.png"]


def test_a_table_is_read_like_lines(write_folder):
    folder = write_folder({"a.png": "x", "sub/b.png": "x"})
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text,more\na.png,"a thing, on a ""table""",1\nsub/b.png,b,\n')
    source = open_source(str(folder))
    found = [(one.key, one.caption) for one in source.samples]
    assert found == [("a.png", 'a thing, on a "table"'), ("sub/b.png", "b")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('file_name,text\na.png,"open', "cannot be read as CSV"),
        ("file_name,text\na.png,one,two", r"1 value\(s\) too many"),
        ("file_name,text\na.png,", "line 2 lacks a file name or a caption"),
        ("name,text\na.png,b", "lacks a file name"),
    ],
)
def test_a_table_that_cannot_be_read(write_folder, text, found):
    folder = write_folder({"a.png": "x"})
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=rf"metadata\.csv[\s\S]*{found}"):
        ImageFolderSource(folder)


def test_hidden_files_are_left_alone(write_folder):
    folder = write_folder(2)
    (folder / "._image_00.png").write_bytes(b"of another system")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "image_00-checkpoint.png").write_bytes(encoded_image())
    assert len(ImageFolderSource(folder)) == 2


@pytest.mark.parametrize("name", ["a.jfif", "b.TIFF", "c.gif", "d.JPE", "e.heic", "f.avif"])
def test_images_of_every_suffix_are_asked_about(write_folder, name):
    folder = write_folder(2)
    (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"have no line in metadata.jsonl, first .'{name}'"):
        ImageFolderSource(folder)


def test_no_file_is_asked_for_by_itself_unless_it_is_a_link(write_folder, monkeypatch):
    folder, asked = write_folder({f"{number % 3}/{number}.png": f"picture {number}" for number in range(30)}), set()
    link = folder / "1" / "1.png"
    link.rename(folder / ".there.png")
    link.symlink_to(folder / ".there.png")

    def noted(get, path, *args, **options):
        asked.add(str(path))
        return get(path, *args, **options)

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, partial(noted, getattr(os, name)))
    assert len(ImageFolderSource(folder)) == 30
    assert str(link) in asked
    assert {path for path in asked if path.endswith(".png")} <= {str(link), str(folder / ".there.png")}
