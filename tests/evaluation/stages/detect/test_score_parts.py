"""Rows on their way to one table: none lost, none doubled, and what is missing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memtrain.errors import RecordError
from memtrain.evaluation.stages.detect.score_parts import ScoreParts, keep_earlier


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"row": number, "norm": number / 3, "seconds": 0.5} for number in numbers]


def parts(folder: Path, **identity: Any) -> ScoreParts:
    return ScoreParts(folder, identity, detectors=["norm"])


def test_parts_of_several_processes_become_one_table(tmp_path: Path) -> None:
    first, second = parts(tmp_path, steps=3), parts(tmp_path, steps=3)
    assert first.done() == set()
    first.append(rows(0, 1, 4), shard="0/2")
    second.append(rows(2, 3), shard="1/2")
    first.append(rows(3), shard="0/1")  # made twice
    first.append([], shard="0/2")
    assert second.done() == {0, 1, 2, 3, 4}
    table = second.merged(5)
    assert table.to_pylist() == rows(0, 1, 2, 3, 4)
    assert not list(second.folder.glob("part-*")), "one file holds all rows now"
    assert first.done() == {0, 1, 2, 3, 4}
    assert first.merged(5) == table


def test_missing_rows_are_counted(tmp_path: Path) -> None:
    found = parts(tmp_path)
    found.append(rows(0, 2), shard="0/1")
    with pytest.raises(RecordError, match=r"1 of 3 prompts have no scores in .*, first number 1"):
        found.merged(3)
    assert found.done() == {0, 2}, "nothing is lost"


def test_an_unfinished_part_does_not_count(tmp_path: Path) -> None:
    found = parts(tmp_path)
    found.append(rows(0), shard="0/1")
    (found.folder / ".part-0-of-1-row-00000001.parquet.77").write_bytes(b"half")
    assert found.done() == {0}


def test_other_settings_have_other_parts(tmp_path: Path) -> None:
    parts(tmp_path, steps=3).append(rows(0), shard="0/1")
    assert parts(tmp_path, steps=4).done() == set()
    assert parts(tmp_path, steps=3).done() == {0}


def test_earlier_results_are_kept(tmp_path: Path) -> None:
    names = ("detection.json", "prompts.parquet")
    assert keep_earlier(tmp_path, key="b", names=names) is None
    (tmp_path / "detection.json").write_text('{"key": "a"}')
    (tmp_path / "prompts.parquet").write_text("scores")
    assert keep_earlier(tmp_path, key="a", names=names) is None
    assert keep_earlier(tmp_path, key="b", names=names) == tmp_path / "detection" / "a"
    assert (tmp_path / "detection" / "a" / "prompts.parquet").read_text() == "scores"
    assert not (tmp_path / "detection.json").exists()


@pytest.mark.parametrize("content", ['{"key": "../../../victim"}', '{"key": ["a"]}', '{"key": "a', "[]", "", "\0"])
def test_results_that_name_no_folder_are_kept_inside(tmp_path: Path, content: str) -> None:
    output, victim = tmp_path / "a" / "b" / "out", tmp_path / "victim"
    output.mkdir(parents=True)
    victim.mkdir()
    for number in (1, 2):
        (output / "detection.json").write_text(content)
        (output / "prompts.parquet").write_text("scores")
        place = keep_earlier(output, key="b", names=("detection.json", "prompts.parquet"))
        assert place == output / "detection" / f"earlier-{number}"
        assert sorted(path.name for path in place.iterdir()) == ["detection.json", "prompts.parquet"]
    assert not any(victim.iterdir())


@pytest.mark.parametrize("damage", ["cut off", "another table"])
def test_what_a_damaged_part_held_is_scored_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = parts(tmp_path, model="a")
    damaged.append(rows(0), shard="0/1")
    (part,) = damaged.folder.glob("part-*.parquet")
    if damage == "cut off":
        part.write_bytes(part.read_bytes()[:-20])
    else:
        pq.write_table(pa.table({"row": ["a"], "norm": ["b"], "seconds": [1.0]}), part)
    assert damaged.done() == set()
    assert f"{part.name} cannot be read" in caplog.text and "scored again" in caplog.text
    assert not part.exists()
