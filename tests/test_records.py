"""The record table: complete parts, resuming, and reading without memtrain."""

import json
from pathlib import Path

import duckdb
import pytest

from memtrain.errors import RecordError
from memtrain.records import RecordWriter, drop_newer, read_steps, read_table, set_aside, write_json


def write(folder: Path, batches: range, *, rank: int = 0, per_part: int = 4) -> None:
    writer = RecordWriter(folder, rank=rank, batches_per_part=per_part)
    for batch in batches:
        writer.append(batch, {"key": ["a", "b"], "batch": [batch] * 2, "rank": [rank] * 2, "score": [0.5, batch]})
    writer.flush()


def test_rows_come_back_in_order_from_all_ranks(tmp_path: Path) -> None:
    write(tmp_path, range(10), rank=1)
    write(tmp_path, range(10), rank=0)
    table = read_steps(tmp_path)
    assert table["batch"].to_pylist() == [batch for batch in range(10) for _ in range(4)]
    assert table["rank"].to_pylist()[:4] == [0, 0, 1, 1]
    names = sorted(part.name for part in (tmp_path / "steps" / "rank-00001").iterdir())
    assert names == [f"part-{a:08d}-{b:08d}.parquet" for a, b in ((0, 3), (4, 7), (8, 9))]


def test_a_results_file_is_complete_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    given = {1: float("nan"), "ends": (0.5, float("inf")), "where": tmp_path, "names": ["é"], "none": None, "yes": True}
    held = write_json(given, path)
    assert held == {"1": None, "ends": [0.5, None], "where": str(tmp_path), "names": ["é"], "none": None, "yes": True}
    assert json.loads(path.read_text(encoding="utf-8")) == held

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("in the middle of it")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_json({"verdict": Unprintable()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == held, "the earlier results are still there"
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_duckdb_reads_the_parts_without_memtrain(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    query = f"SELECT key, count(*), max(score) FROM '{tmp_path}/steps/*/*.parquet' GROUP BY key ORDER BY key"
    assert duckdb.sql(query).fetchall() == [("a", 6, 0.5), ("b", 6, 5.0)]


def test_resuming_drops_newer_parts_of_every_rank_and_unfinished_ones(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path, range(8), rank=rank)
        write(tmp_path, range(8, 11), rank=rank)
    unfinished = tmp_path / "steps" / "rank-00000" / ".part-00000012-00000013.parquet.77"
    unfinished.write_bytes(b"half")
    assert drop_newer(tmp_path, 8) == 2
    assert read_steps(tmp_path)["batch"].to_pylist() == [batch for batch in range(8) for _ in range(4)]
    assert not unfinished.exists()


def test_a_part_across_the_checkpoint_is_refused_rather_than_cut(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    with pytest.raises(RecordError, match="before and after the checkpoint's 6"):
        drop_newer(tmp_path, 6)


def test_missing_records_say_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No records"):
        read_steps(tmp_path)
    with pytest.raises(RecordError, match=r"evidence\.parquet does not exist"):
        read_table(tmp_path, "evidence")


def test_an_earlier_run_is_kept_beside(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    assert set_aside(run) is None
    for number in (1, 2):
        run.mkdir()
        (run / "x").write_text(str(number))
        kept = set_aside(run)
        assert kept == tmp_path / f"tiny-{number}"
        assert (kept / "x").read_text() == str(number)
    assert not run.exists()


def test_a_torn_part_is_named_with_what_can_be_done(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    part = tmp_path / "steps" / "rank-00000" / "part-00000004-00000007.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    for reading in (lambda: read_steps(tmp_path), lambda: drop_newer(tmp_path, 8)):
        with pytest.raises(RecordError, match=r"part-00000004-00000007\.parquet is torn(?s:.*)before batch 4"):
            reading()
    assert drop_newer(tmp_path, 4) == 1, "one that is newer than the checkpoint is dropped, torn or not"
    assert len(read_steps(tmp_path)) == 8


def test_a_torn_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(RecordError, match=r"samples\.parquet is torn"):
        read_table(tmp_path, "samples")
