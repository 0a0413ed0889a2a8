"""Tar shards: naming rules, patterns, captions, and what is refused."""

import gzip
import json

import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from memtrain.data.webdataset import WebDatasetSource
from memtrain.errors import DataError

from ..conftest import encoded_image


def pairs(*indices):
    files = {}
    for index in indices:
        files |= {f"s{index}.png": encoded_image(index), f"s{index}.txt": f"picture {index}".encode()}
    return files


def captions(source):
    return {sample.key: sample.caption for sample in source.samples}


def test_images_are_read_by_random_access(write_shard):
    source = WebDatasetSource(write_shard(pairs(0, 1, 2)))
    assert captions(source) == {"s0": "picture 0", "s1": "picture 1", "s2": "picture 2"}
    assert [source.load_image(index).getpixel((0, 0))[0] for index in (2, 0, 1, 2)] == [20, 0, 10, 20]


def test_same_samples_as_the_webdataset_library(write_shard):
    files = pairs(0, 1)
    files |= {"sub/z.jpg": encoded_image(3, kind="JPEG"), "sub/z.txt": "zoë".encode(), "sub/z.json": b"{}"}
    shard = write_shard(files)
    with shard.open("rb") as file:
        rows = list(group_by_keys({**row, "__url__": str(shard)} for row in tar_file_iterator(file)))
    library = {row["__key__"]: row["txt"].decode() for row in rows}
    assert captions(WebDatasetSource(shard)) == library


def test_braces_select_shards(write_shard):
    for number in range(3):
        write_shard(pairs(number), name=f"shards/{number:03}.tar")
    folder = write_shard(pairs(3), name="shards/003.tar").parent
    assert sorted(captions(WebDatasetSource(folder / "{001..002}.tar"))) == ["s1", "s2"]
    assert sorted(captions(WebDatasetSource(folder))) == ["s0", "s1", "s2", "s3"]


def test_pattern_with_a_missing_shard(write_shard):
    folder = write_shard(pairs(0), name="shards/0.tar").parent
    with pytest.raises(
        DataError, match=r"2 of 3 shards of .* do not exist, first .*1\.tar[\s\S]*the range of the " r"pattern"
    ):
        WebDatasetSource(folder / "{0..2}.tar")


def test_unbalanced_braces(tmp_path):
    with pytest.raises(DataError, match=r"cannot be expanded[\s\S]*correct the braces"):
        WebDatasetSource(tmp_path / "{0..2.tar")


def test_caption_from_json(write_shard):
    row = json.dumps({"caption": " from json ", "label": "x"}).encode()
    source = WebDatasetSource(write_shard({"a.png": encoded_image(), "a.json": row}))
    assert captions(source) == {"a": "from json"}


def test_txt_is_preferred_to_json(write_shard):
    files = {"a.json": b'{"caption": "json"}', "a.txt": b"\xef\xbb\xbftext\n", "a.png": encoded_image()}
    assert captions(WebDatasetSource(write_shard(files))) == {"a": "text"}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"caption": null}', b"{}", b"\xff"])
def test_json_without_a_usable_caption(write_shard, content):
    with pytest.raises(DataError, match=r"caption of sample 'a' in .* cannot be read[\s\S]*JSON with a 'caption'"):
        WebDatasetSource(write_shard({"a.png": encoded_image(), "a.json": content}))


def test_caption_that_is_not_utf8(write_shard):
    with pytest.raises(DataError, match=r"caption of sample 'a' in .* cannot be read"):
        WebDatasetSource(write_shard({"a.png": encoded_image(), "a.txt": "é".encode("latin-1")}))


def test_sample_without_caption(write_shard):
    with pytest.raises(DataError, match=r"'s1' in .* has no caption, only \['png'\]"):
        WebDatasetSource(write_shard(pairs(0) | {"s1.png": encoded_image()}))


def test_sample_without_image(write_shard):
    with pytest.raises(DataError, match=r"'s1' in .* has no image, only \['txt'\]"):
        WebDatasetSource(write_shard(pairs(0) | {"s1.txt": b"x"}))


def test_file_twice_in_a_shard(write_shard):
    files = [*pairs(0).items(), ("s0.png", encoded_image(1))]
    with pytest.raises(DataError, match=r"'s0\.png' occurs twice in .*: key 's0' names more than one sample"):
        WebDatasetSource(write_shard(files))


def test_key_in_two_shards(write_shard):
    write_shard(pairs(0, 1), name="shards/0.tar")
    folder = write_shard(pairs(1, 2), name="shards/1.tar").parent
    with pytest.raises(DataError, match=r"1 key\(s\) name more than one sample in .*, first \['s1'\]"):
        WebDatasetSource(folder)


def test_empty_shard(write_shard):
    with pytest.raises(DataError, match="No captioned image"):
        WebDatasetSource(write_shard({}))


@pytest.mark.parametrize("damage", [lambda data: data[:700], lambda data: b"no tar", lambda data: gzip.compress(data)])
def test_damaged_or_compressed_shard(write_shard, damage):
    shard = write_shard(pairs(0, 1))
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar"):
        WebDatasetSource(shard)


def test_unreadable_image(write_shard):
    source = WebDatasetSource(write_shard(pairs(0) | {"s1.png": b"no image", "s1.txt": b"x"}))
    with pytest.raises(DataError, match=r"The image of sample 's1' in .* cannot be read"):
        source.load_image(1)


@pytest.mark.parametrize(
    ("files", "caption", "alternatives"),
    [
        (
            {"a.txt": b"a cat", "a.json": b'{"captions": ["a pet", " a cat", "an animal"]}'},
            "a cat",
            ("a pet", "an animal"),
        ),
        ({"a.json": b'{"caption": "a cat", "captions": ["a pet"]}'}, "a cat", ("a pet",)),
        ({"a.json": b'{"captions": ["a cat", "a pet"]}'}, "a cat", ("a pet",)),
        ({"a.txt": b"a cat", "a.json": b'{"caption": null, "label": 1}'}, "a cat", ()),
        ({"a.txt": b"a cat", "a.json": b'["a list of something"]'}, "a cat", ()),
    ],
)
def test_several_captions(write_shard, files, caption, alternatives):
    (sample,) = WebDatasetSource(write_shard({"a.png": encoded_image(), **files})).samples
    assert (sample.caption, sample.alternatives) == (caption, alternatives)


@pytest.mark.parametrize(
    "content", [b'{"captions": "a pet"}', b'{"captions": ["a pet", 3]}', b'{"captions": null}', b"{"]
)
def test_captions_that_are_no_list_of_texts(write_shard, content):
    with pytest.raises(DataError, match=r"caption of sample 'a' in .* cannot be read[\s\S]*a list of 'captions'"):
        WebDatasetSource(write_shard({"a.png": encoded_image(), "a.txt": b"a cat", "a.json": content}))


def test_a_sample_says_which_shard_holds_it(write_shard):
    shards = [write_shard(pairs(index), name=f"shards/{index}.tar") for index in (0, 1)]
    source = WebDatasetSource(shards[0].parent)
    assert [source.stored_in(index) for index in range(2)] == shards


def test_what_img2dataset_could_not_get_is_left_out_and_counted(write_shard, caplog):
    def listed(key, caption, **files):
        row = json.dumps({"key": key, "status": "success", "caption": caption}).encode()
        return {f"{key}.json": row} | {f"{key}.{name}": content for name, content in files.items()}

    files = listed("a", "a cat", png=encoded_image(), txt=b"a cat")
    files |= listed("b", None, png=encoded_image(), txt=b"") | listed("c", "x", txt=b"x")
    files |= listed("d", None, png=encoded_image()) | listed("e", "e", png=encoded_image())
    assert captions(WebDatasetSource(write_shard(files))) == {"a": "a cat", "e": "e"}
    assert "3 of 5 samples" in caplog.text
    assert "['b', 'c', 'd']" in caplog.text
