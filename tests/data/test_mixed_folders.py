"""Folders of which a part would be passed over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from memtrain.data.source import open_source
from memtrain.errors import DataError
from tests.conftest import encoded_image

IMAGE = encoded_image()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("a.png", "a.txt", "b.tar"), r"1 shard\(s\) and 1 image"),
        (("metadata.jsonl", "b.tar"), r"1 shard\(s\) and the table metadata.jsonl"),
        (("00/b.tar",), "shards in folders below it, first '00/b.tar'"),
        (("a.tar", "00/b.tar"), "shards in folders below it"),
        (("train/metadata.jsonl", "train/a.png"), "a table in a folder below it, first 'train/metadata.jsonl'"),
        (("metadata.parquet", "a.png"), "metadata.parquet, which is not read"),
        (("a.png", "a.json", "b.png", "b.txt"), r"1 image\(s\) with a .json file beside them"),
    ],
)
def test_a_part_that_would_be_passed_over_is_named(tmp_path: Path, files: tuple[str, ...], found: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE if name.endswith(".png") else b"x")
    with pytest.raises(DataError, match=found):
        open_source(str(tmp_path))


def test_json_beside_images_is_no_caption_and_no_hindrance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "a.json").write_text("{}")
    assert open_source(str(tmp_path), caption="a dog").samples[0].caption == "a dog"
    assert "not read" in caplog.text


def test_an_empty_path_is_not_this_folder() -> None:
    with pytest.raises(DataError, match="is empty"):
        open_source(" ")


def test_line_ends_of_other_scripts_stay_in_a_caption(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "a.TXT").write_bytes("a\u2028cat\r\nanother".encode())
    (sample,) = open_source(str(tmp_path)).samples
    assert (sample.caption, sample.alternatives) == ("a\u2028cat", ("another",))


@pytest.mark.parametrize("table", ["File_Name;Text\na.png;a cat, black\n", 'file_name,text\na.png,"a cat, black"\n'])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, table: str) -> None:
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "metadata.csv").write_text(table)
    assert open_source(str(tmp_path)).samples[0].caption == "a cat, black"


def test_what_macos_adds_to_a_tar_is_passed_over(write_shard: Callable[..., Path]) -> None:
    files = {"cats/a.png": IMAGE, "cats/a.txt": b"a cat", "cats/._a.png": b"x", "__MACOSX/._a.txt": b"x"}
    assert [one.key for one in open_source(str(write_shard(files | {"cats/.DS_Store": b"x"}))).samples] == ["cats/a"]
