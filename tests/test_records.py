"""The record table: complete parts, resuming, and reading without memtrain."""

import json
from pathlib import Path

import duckdb
import pytest

from memtrain.errors import RecordError
from memtrain.files.step_parts import parts_of
from memtrain.records import (
    RecordWriter,
    drop_newer,
    iterate_steps,
    read_steps,
    read_table,
    set_aside,
    write_json,
)


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


def test_a_part_across_the_checkpoint_is_cut_by_row_for_every_rank(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path, range(8), rank=rank)
    assert drop_newer(tmp_path, 6) == 2
    assert read_steps(tmp_path)["batch"].to_pylist() == [batch for batch in range(6) for _ in range(4)]
    names = sorted(part.name for part in (tmp_path / "steps" / "rank-00001").iterdir())
    assert names == ["part-00000000-00000003.parquet", "part-00000004-00000005.parquet"]
    for rank in (0, 1):
        write(tmp_path, range(6, 9), rank=rank)
    assert read_steps(tmp_path)["batch"].to_pylist() == [batch for batch in range(9) for _ in range(4)]


def test_a_kill_while_a_part_is_cut_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, range(8), per_part=8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        drop_newer(tmp_path, 6)
    assert len(list(tmp_path.glob("steps/*/*.parquet"))) == 2
    assert read_steps(tmp_path)["batch"].to_pylist() == [batch for batch in range(8) for _ in range(2)]
    drop_newer(tmp_path, 6)
    assert read_steps(tmp_path)["batch"].to_pylist() == [batch for batch in range(6) for _ in range(2)]


def killed(self: Path, missing_ok: bool = False) -> None:
    if not self.name.startswith("."):
        raise KeyboardInterrupt
    Path.rename(self, self.with_name("gone")) if self.exists() else None


def test_parts_stay_few_and_hold_every_row_in_order(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, rank=0, batches_per_part=1, several=4)
    most = 0
    for batch in range(100):
        writer.append(batch, {"key": ["a"], "batch": [batch], "rank": [0], "score": [float(batch)]})
        most = max(most, len(list(writer.folder.iterdir())))
    assert most <= 16, "three of each size at most, and sizes grow fourfold"
    assert read_steps(tmp_path)["score"].to_pylist() == [float(batch) for batch in range(100)]
    again = RecordWriter(tmp_path, rank=0, batches_per_part=1, several=4)
    for batch in range(100, 110):
        again.append(batch, {"key": ["a"], "batch": [batch], "rank": [0], "score": [float(batch)]})
    assert read_steps(tmp_path)["batch"].to_pylist() == list(range(110))
    assert len(list(writer.folder.iterdir())) <= 16


def test_parts_before_the_last_checkpoint_are_not_merged_with_later_ones(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, rank=0, batches_per_part=1, several=4)
    for batch in range(40):
        writer.append(batch, {"key": ["a"], "batch": [batch], "rank": [0], "score": [0.0]})
        if batch == 25:
            writer.checkpoint()
    before = len(list(writer.folder.iterdir()))
    assert drop_newer(tmp_path, 26) < before
    assert all(part.last < 26 for part in parts_of(tmp_path))
    assert read_steps(tmp_path)["batch"].to_pylist() == list(range(26))


def test_a_kill_while_parts_are_merged_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RecordWriter(tmp_path, rank=0, batches_per_part=1, several=4)
    rows = [{"key": ["a", "b"], "batch": [batch] * 2, "rank": [0] * 2, "score": [0.5, batch]} for batch in range(9)]
    for batch in range(3):
        writer.append(batch, rows[batch])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        writer.append(3, rows[3])
    assert len(list(writer.folder.iterdir())) == 5, "the merged part, and all that it holds"
    expected = [batch for batch in range(4) for _ in range(2)]
    assert read_steps(tmp_path)["batch"].to_pylist() == expected
    assert sum(len(table) for table in iterate_steps(tmp_path, ["key"])) == 8
    drop_newer(tmp_path, 4)
    assert [path.name for path in writer.folder.iterdir()] == ["part-00000000-00000003.parquet"]
    assert read_steps(tmp_path)["batch"].to_pylist() == expected


def test_a_newer_part_is_read_without_the_older_ones(tmp_path: Path) -> None:
    write(tmp_path, range(12))
    oldest = tmp_path / "steps" / "rank-00000" / "part-00000000-00000003.parquet"
    oldest.write_bytes(b"not looked at")
    assert sorted(set(read_steps(tmp_path, first=6)["batch"].to_pylist())) == [6, 7, 8, 9, 10, 11]
    tables = list(iterate_steps(tmp_path, ["score"], first=6))
    assert [table.column_names for table in tables] == [["score"], ["score"]]
    assert sum(map(len, tables)) == 12


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
