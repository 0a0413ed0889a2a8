"""The files of a scan, and the line that says what it found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from memtrain.data.selection import read_keys
from memtrain.errors import RecordError
from memtrain.families.scan_result import Scan, read_scan, write_exclude, write_scan
from memtrain.families.table import COLUMNS, Families

from .picture_folder import ODD

FAMILIES = Families(
    pictures={"a": "a", ODD: "a", "c,d": "a", "e": "e", "f": "e"},
    captions={"a": "a", "g": "a"},
    similarity={ODD: 1.0, "c,d": 0.9, "f": 0.8},
    reason={ODD: "exact", "c,d": "near", "f": "near"},
)
SCAN = Scan(
    families=FAMILIES,
    keys=["a", ODD, "c,d", "e", "f", "g", "h"],
    sizes=np.array([[4, 4], [8, 8], [16, 4], [2, 2], [2, 2], [1, 1], [1, 1]], np.int32),
    broken={"x": "torn"},
    descriptor="stand-in 1",
    threshold=0.75,
    false_merge_rate=0.01,
    rests_on="so many pictures",
    seconds=(1.5, 0.5),
)


def test_the_line_says_what_it_cost_and_what_was_found() -> None:
    assert SCAN.line() == (
        "Scanned 7 images in 2.0 s (4 a second): 4 pictures; 2 have several files, the largest 3; "
        "1 caption belongs to several pictures, the largest to 2 files; 1 more could not be read."
    )
    assert replace(SCAN, cached=True).line().startswith("Families of 7 images, known from an earlier scan: 4 pictures")
    alone = replace(SCAN, families=Families(), broken={})
    assert alone.line() == "Scanned 7 images in 2.0 s (4 a second): 7 pictures; none has several files."


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert read_scan(tmp_path) is None
    write_scan(SCAN, tmp_path, path="my data")
    found = read_scan(tmp_path)
    assert found is not None
    assert found.cached
    assert found.sizes is None
    assert found.counts() == SCAN.counts()
    assert dict(found.families.pictures) == dict(FAMILIES.pictures)
    assert found.families.similarity == pytest.approx(FAMILIES.similarity)
    assert (found.broken, found.threshold, found.seconds) == (SCAN.broken, SCAN.threshold, SCAN.seconds)
    table = pq.read_table(tmp_path / "families.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert table["key"].to_pylist() == SCAN.keys
    summary = json.loads((tmp_path / "scan.json").read_text())
    assert (summary["path"], summary["pictures"], summary["images_per_second"]) == ("my data", 4, 3.5)


def test_a_spoilt_summary_is_refused(tmp_path: Path) -> None:
    write_scan(SCAN, tmp_path)
    (tmp_path / "scan.json").write_text("{}")
    with pytest.raises(RecordError, match=r"scan\.json cannot be read"):
        read_scan(tmp_path)


def test_all_but_the_largest_are_left_out_and_training_reads_the_list(tmp_path: Path) -> None:
    path = tmp_path / "exclude.csv"
    assert write_exclude(SCAN, path) == 3
    # 8 x 8 and 16 x 4 have as many pixels: the first is kept.
    assert read_keys(str(path)) == {"a", "c,d", "f"}
    assert SCAN.kept == {"a": ODD, "e": "e"}
    swapped = replace(SCAN, sizes=np.array([[4, 4], [1, 1], [2, 2], [2, 2], [3, 3], [1, 1], [1, 1]], np.int32))
    write_exclude(swapped, path)
    assert read_keys(str(path)) == {ODD, "c,d", "e"}


def test_a_list_of_nothing_can_be_read(tmp_path: Path) -> None:
    assert write_exclude(replace(SCAN, families=Families()), tmp_path / "exclude.csv") == 0
    assert read_keys(str(tmp_path / "exclude.csv")) == frozenset()
