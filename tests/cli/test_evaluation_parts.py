"""Parts of a command by plain arguments, as another engine calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from memtrain import cli
from memtrain.cli.evaluation_parts import evaluate_part, merge_parts, parts_wanted
from memtrain.errors import ConfigurationError, RecordError


def command(pipeline_folder: Path, tmp_path: Path, output: str) -> list[str]:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("caption,memorized\na cat,1\nthe dogs,0\nb,0\n", encoding="utf-8")
    options = {
        "--model": pipeline_folder,
        "--prompts": prompts,
        "--steps": 1,
        "--images_per_prompt": 1,
        "--batch_size": 1,
        "--most": 0,
        "--output": tmp_path / output,
    }
    return ["attention", *(str(part) for option in options.items() for part in option)]


@pytest.mark.slow
def test_parts_are_done_in_any_order_and_put_together(pipeline_folder: Path, tmp_path: Path) -> None:
    whole, parts = (command(pipeline_folder, tmp_path, name) for name in ("whole", "parts"))
    assert evaluate_part(whole, 1, 0)
    assert not evaluate_part(parts, 2, 1)
    with pytest.raises(RecordError, match="missing"):
        merge_parts(parts)
    assert evaluate_part(parts, 2, 0)
    tables = [pq.read_table(tmp_path / name / "attention" / "attention.parquet") for name in ("whole", "parts")]
    assert tables[0].equals(tables[1])
    found = [json.loads((tmp_path / one / "attention" / "attention.json").read_text()) for one in ("whole", "parts")]
    assert found[0]["entropy"] == found[1]["entropy"]
    assert not (tmp_path / "parts" / "parts").exists()


def test_what_cannot_be_cut_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    words = command(pipeline_folder, tmp_path, "out")
    assert parts_wanted(words) == 1
    with pytest.raises(ConfigurationError, match="--shard in a command"):
        evaluate_part([*words, "--shard", "0/2"], 2, 0)
    with pytest.raises(ConfigurationError, match="does not work in parts"):
        evaluate_part(["compare", str(tmp_path), str(tmp_path)], 2, 0)


@pytest.mark.slow
def test_ray_comes_to_the_same(pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command as a user types it, on a real Ray with two processes."""
    whole, parts = (command(pipeline_folder, tmp_path, name) for name in ("whole", "parts"))
    cli.evaluate(whole)
    cli.evaluate([*parts, "--engine", "ray", "--engine_tasks=2"])
    assert "Part 2 of 2 is done" in capsys.readouterr().out
    tables = [pq.read_table(tmp_path / name / "attention" / "attention.parquet") for name in ("whole", "parts")]
    assert tables[0].equals(tables[1])


def test_an_engine_and_a_part_exclude_each_other(pipeline_folder: Path, tmp_path: Path) -> None:
    words = command(pipeline_folder, tmp_path, "out")
    with pytest.raises(SystemExit, match="leave out --engine or --shard"):
        cli.evaluate([*words, "--engine", "ray", "--shard", "0/2"])
