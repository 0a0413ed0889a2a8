"""Families and their table."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memtrain.errors import RecordError
from memtrain.families.table import Families

FAMILIES = Families({"a": "a", "b": "a"}, {"a": "a", "c": "a"}, similarity={"b": 0.75}, reason={"b": "near"})


def test_members_and_names() -> None:
    assert [FAMILIES.picture(key) for key in "abcd"] == ["a", "a", "c", "d"]
    assert [FAMILIES.caption(key) for key in "abcd"] == ["a", "b", "a", "d"]
    assert FAMILIES.picture_members("a") == ("a", "b")
    assert FAMILIES.picture_members("c") == ("c",)
    assert FAMILIES.caption_members("a") == ("a", "c")


def test_the_table_is_read_back_and_is_readable_without_memtrain(tmp_path) -> None:
    path = tmp_path / "families.parquet"
    FAMILIES.write(path, "abcd")
    assert Families.read(path) == FAMILIES
    rows = duckdb.sql(f"select picture_family, count(*) from '{path}' group by 1 order by 1").fetchall()
    assert rows == [("a", 2), ("c", 1), ("d", 1)]


def test_what_is_no_table_is_refused(tmp_path) -> None:
    path = tmp_path / "families.parquet"
    with pytest.raises(RecordError, match="does not exist"):
        Families.read(path)
    path.write_bytes(b"no table")
    with pytest.raises(RecordError, match="cannot be read"):
        Families.read(path)
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(RecordError, match="has no column 'picture_family'"):
        Families.read(path)
