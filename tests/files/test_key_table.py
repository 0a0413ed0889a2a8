"""Keys come out of flagged.csv, also after a spreadsheet."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import DataError
from memtrain.files.key_table import read_key_table
from memtrain.files.sheet_cells import write_cells


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfkey,caption,visits\r\n003.png,a thing,6\r\n",
        b"key;caption;visits\r\n003.png;a thing;6\r\n",
        b'"key"\t"caption"\n003.png\ta thing\n',
        "Key,caption\r\n003.png,ein Füchslein\r\n".encode("utf-16"),
        "key;caption\r\n003.png;ein Füchslein\r\n".encode("cp1252"),
        b"sep=;\r\nkey;n\r\n003.png;\r\n;\r\n"[:-3],
    ],
)
def test_a_spreadsheet_has_saved_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "flagged.csv").write_bytes(content)
    assert read_key_table(tmp_path / "flagged.csv") == ["003.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name\n003.png\n", r"has the columns \['name'\]"),
        (b"", r"has the columns \[\]"),
        (b"key,caption\n,a\n", "line 2 has no key"),
        (b'key,caption\n003.png,"a\n004.png,b\n', "line 2: a quote has no end"),
        ("key\nFüchse.png\n".encode("cp1252"), "not UTF-8"),
        (b"PK\x03\x04\0\0", "NUL"),
    ],
)
def test_what_is_no_table_of_keys(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "flagged.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_key_table(tmp_path / "flagged.csv")


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.text(min_size=1, max_size=8), max_size=3))
def test_keys_that_are_written_come_back(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "k.csv"
    keys = [key for key in keys if key.strip()]
    with path.open("w", newline="", encoding="utf-8") as file:
        write_cells(file, ("key", "n"), [(key, "") for key in keys])
    assert read_key_table(path) == keys
