"""Text and JSON of strangers: read, or refused in one line."""

import gzip
import json
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import DataError
from memtrain.files.text import json_of, read_json, read_json_object, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_marked_encodings_and_line_endings(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "a.txt").write_bytes((mark + "füchse\r\nrot\rund\n").encode(encoding))
    assert read_text(tmp_path / "a.txt") == "füchse\nrot\nund\n"


def test_a_compressed_file_is_limited_by_what_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a" * 100_000))
    assert len(read_text(path, most=100_000)) == 100_000
    with pytest.raises(DataError, match="more than 99999 bytes"):
        read_text(path, most=99_999)
    for broken in (path.read_bytes()[:-9], b"no gzip", gzip.compress(b"abc")[:10] + b"\xff" * 20):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read: "):
            read_text(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prä".encode("cp1252"), "not UTF-8: byte 2"),
        (b"\xff\xfea", "not UTF-16"),
        (b"a\0b", "NUL character"),
        ("a".encode("utf-32"), "NUL character"),
    ],
)
def test_other_encodings_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "a.txt")


def test_a_folder_and_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("a\0b")):
        with pytest.raises(DataError, match="cannot be read"):
            read_text(path)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "[" * 200_000, "9" * 5000, "{", '{"a": 1,}', ""])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(DataError, match="the file is not JSON"):
        json_of(text, "the file")


def test_a_list_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json") == [1]
    with pytest.raises(DataError, match="does not hold a JSON object") as found:
        read_json_object(tmp_path / "a.json", what="results", remedy="measure again")
    assert found.value.remedy == "measure again"


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=40) | st.text(max_size=20).map(lambda text: json.dumps(text).encode()))
def test_any_bytes_are_a_value_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_bytes(content)
    with suppress(DataError):
        read_json(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(20_000_000), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 1000 bytes"):
            read_text(tmp_path / "a.txt.gz", most=1000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
