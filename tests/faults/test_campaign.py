"""The campaign: ten kills of it, that it finds what it looks for, and that it goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from memtrain.callbacks.checkpoint_file import write_checkpoint
from memtrain.records import RecordWriter, write_json, write_parquet
from tests.conftest import ROOT
from tests.faults.campaign import campaign
from tests.faults.commands import COMMANDS, chosen
from tests.faults.outcome import outcome


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.faults.campaign", "--kills", "10", "--seed", "1"]
    places = ["--folder", str(tmp_path / "work"), "--json", str(tmp_path / "faults.json")]
    ended = subprocess.run([*words, *places], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "faults.json").read_text(encoding="utf-8"))
    assert (found["kills"], found["rows_lost"], found["rows_doubled"], found["all_equal"]) == (10, 0, 0, True)
    assert "10 kills: 0 rows lost, 0 doubled; weights and results equal" in ended.stdout


def results(folder: Path, *, rows: list[int], weight: float = 1.0, rate: float = 0.5) -> Path:
    """What a command may leave."""
    writer = RecordWriter(folder / "records", rank=0, batches_per_part=2)
    for batch, row in enumerate(rows):
        writer.append(batch, {"key": [f"{row}"], "batch": [row]})
    writer.flush()
    write_json({"rate": rate, "seconds": torch.rand(()).item()}, folder / "results.json")
    checkpoint = {"global_step": 3, "state_dict": {"weight": torch.full((2, 1), weight)}}
    write_checkpoint(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


def test_rows_weights_and_figures_that_differ_are_found(tmp_path: Path) -> None:
    expected = outcome(results(tmp_path / "expected", rows=[1, 2, 3]))
    same = outcome(results(tmp_path / "same", rows=[1, 2, 3])).against(expected)
    assert same == {"rows_lost": 0, "rows_doubled": 0, "weights_differ": [], "files_differ": []}
    other = outcome(results(tmp_path / "other", rows=[1, 2, 2], weight=2.0, rate=0.4)).against(expected)
    assert (other["rows_lost"], other["rows_doubled"]) == (1, 1)
    assert other["weights_differ"] == ["checkpoints/last.ckpt"]
    assert other["files_differ"] == ["results.json"]


def test_a_torn_table_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    write_parquet(pa.table({"a": [1]}), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(pa.ArrowInvalid):
        outcome(tmp_path)


def test_every_command_has_its_turn_and_the_same_moments_for_a_seed() -> None:
    assert [chosen(0, case)[0].name for case in range(len(COMMANDS))] == [command.name for command in COMMANDS]
    assert chosen(0, 7)[1].random() == chosen(0, 7)[1].random() != chosen(1, 7)[1].random()


def test_a_campaign_that_is_complete_is_not_made_again(tmp_path: Path) -> None:
    case = {"case": 0, "command": "scan", "killed_after": [1.0, 2.0], "status": 0, "equal": True}
    said = write_json({"seed": 3, "kills": 2, "cases": [case]}, tmp_path / "faults.json")
    assert campaign(tmp_path / "work", kills=2, seed=3, path=tmp_path / "faults.json") == said
    assert not (tmp_path / "work").exists()
