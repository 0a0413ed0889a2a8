"""Parts of a profile: written now and then, merged without loss, read in the order that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memtrain.errors import RecordError
from memtrain.evidence import profile_parts
from memtrain.evidence.profile_parts import ProfileParts

WIDTH = 3


def values(*numbers: float) -> profile_parts.Values:
    return np.array([[number, number + 0.25, number + 0.5] for number in numbers], dtype=np.float32)


def written(folder: Path, parts: int = 10) -> ProfileParts:
    made = ProfileParts(folder, width=WIDTH)
    for part in range(parts):
        made.add([f"a{part}", f"b{part}"], values(part, -part))
        made.flush()
    return made


def read(parts: ProfileParts, *contents: str) -> list[float]:
    found, known = parts.read(pa.array(contents, pa.string()))
    assert (np.isnan(found).all(axis=1) == ~known).all()
    return [float(row[0]) if there else float("nan") for row, there in zip(found, known, strict=True)]


def test_values_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    made = written(tmp_path)
    assert read(made, "b7", "a2", "b7") == [-7, 2, -7]
    found, known = made.read(pa.array(["a1", "none", "b9"], pa.string()))
    assert known.tolist() == [True, False, True]
    assert found[2].tolist() == [-9, -8.75, -8.5]
    assert read(ProfileParts(tmp_path / "empty", width=WIDTH)) == []


def test_what_waits_is_written_when_it_is_time(tmp_path: Path) -> None:
    made = ProfileParts(tmp_path, width=WIDTH, seconds=3600)
    made.add(["a"], values(1))
    assert not made.due
    made.seconds = 0
    assert made.due
    made.add(["b"], values(2))
    made.flush()
    made.flush()
    assert len(made.paths()) == 1
    assert read(made, "a", "b") == [1, 2]


def test_parts_are_merged_and_a_kill_in_between_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, unlink = written(tmp_path), Path.unlink
    everything = [f"{letter}{part}" for part in range(10) for letter in "ab"]
    before = read(made, *everything)
    assert not made.merge(several=10)

    def killed(self: Path, missing_ok: bool = False) -> None:
        if not self.name.startswith("."):
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        made.merge()
    monkeypatch.undo()
    assert len(made.paths()) == 11
    assert read(made, *everything) == before
    assert made.merge()
    assert len(made.paths()) == 1
    assert sorted(made.contents().to_pylist()) == sorted(everything), "each once"
    assert read(made, *everything) == before


def test_parts_of_earlier_versions_are_read(tmp_path: Path) -> None:
    number = float(np.float32(0.1))
    table = pa.table({"content": ["x", "y"], "values": [[number, 1.0, 2.0], [3.0, 4.0, 5.0]]})
    pq.write_table(table, tmp_path / "old.parquet")
    made = written(tmp_path)
    assert read(made, "y", "a4", "x") == [3, 4, number]
    assert made.merge()
    assert read(made, "y", "a4", "x") == [3, 4, number]


def test_what_another_run_merges_meanwhile_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, contents, calls = written(tmp_path), profile_parts._contents, []

    def meanwhile(paths: list[Path]) -> pa.ChunkedArray:
        found = contents(paths)
        calls.append(len(paths))
        if len(calls) == 1:
            monkeypatch.setattr(profile_parts, "_contents", contents)
            ProfileParts(tmp_path, width=WIDTH).merge()
            monkeypatch.setattr(profile_parts, "_contents", meanwhile)
        return found

    monkeypatch.setattr(profile_parts, "_contents", meanwhile)
    assert read(made, "a3", "b3") == [3, -3]
    assert calls == [10, 1]


def test_a_torn_part_is_named(tmp_path: Path) -> None:
    made = written(tmp_path, parts=1)
    path = made.paths()[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RecordError, match=rf"{path.name} is torn(?s:.*)delete it"):
        read(made, "a0")
