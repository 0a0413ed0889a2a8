"""Training and evaluation of data in which a picture has several files: counted once, and cleared only with ground."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from memtrain import cli
from memtrain.families.table import Families
from memtrain.records import HELDOUT, read_table
from tests.cli.test_training import arguments


@pytest.fixture
def run(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A short run on sixty pictures, the first of which has eight files."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    images = write_folder(67)
    pixels = random.Random(0)
    files = sorted(images.glob("*.png"))
    for number, file in enumerate(files):
        if number < 60:
            Image.frombytes("RGB", (16, 16), pixels.randbytes(768)).save(file)
        else:
            file.write_bytes(files[0].read_bytes())
    given = arguments(tmp_path / "run", images, pipeline_folder, steps=6)
    assert given[given.index("--data.init_args.families") + 1] == "off"
    cli.train([*given, "--data.init_args.duplicates", "{count: 0}"])
    return tmp_path / "run"


def evaluate(run: Path, *options: str) -> dict[str, object]:
    """What `results.json` says, and the status of the command."""
    words = ["--run", str(run), "--steps", "2", "--images_per_prompt", "2", "--detectors", "none", "--kid", "false"]
    status: object = 0
    try:
        cli.evaluate([*words, *options])
    except SystemExit as ended:
        status = ended.code
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    return {"status": status, **results}


@pytest.mark.slow
def test_copies_are_one_picture_and_clear_nothing_unless_known(run: Path) -> None:
    """Nobody has looked: null, with the reason; with a table of families, the copies are one repeated picture."""
    unknown = evaluate(run)
    assert unknown["status"] == 0
    verdict = unknown["verdict"]
    assert isinstance(verdict, dict)
    reasons = [one["reason"] for one in verdict["reasons"]]
    assert {"families_unknown", "few_seeds", "few_steps"} <= set(reasons)
    assert verdict["cleared"] is not True

    copies = [f"image_{number:02}.png" for number in (0, *range(60, 67))]
    everything = [f"image_{number:02}.png" for number in range(67)]
    Families(dict.fromkeys(copies, copies[0])).write(run / "records" / "families.parquet", everything)
    known = evaluate(run, "--fail_on", "unjudged")
    verdict = known["verdict"]
    assert isinstance(verdict, dict)
    assert "families_unknown" not in [one["reason"] for one in verdict["reasons"]]
    assert known["status"] == {False: 3, None: 4}[verdict["cleared"]]
    families, replication = known["families"], known["replication"]
    assert isinstance(families, dict) and isinstance(replication, dict)
    trained = 67 - len(_held_out(run))
    files = len(set(copies) - _held_out(run))
    assert (families["pictures"], families["files"]) == (1, files)
    assert replication["n_training_images"] == trained - files + 1
    assert (replication["groups"]["repeated"]["n"], replication["groups"]["repeated"]["of"]) == (1, 1)
    left_out = len(set(copies) & _held_out(run))
    assert replication["heldout_left_out"] == left_out
    assert replication["n_heldout"] == len(_held_out(run)) - left_out
    assert "Pictures of several files" in (run / "evaluation" / "report.html").read_text(encoding="utf-8")


def _held_out(run: Path) -> set[str]:
    """Keys of the samples that the run held out."""
    rows = read_table(run / "records", "samples").to_pylist()
    return {row["key"] for row in rows if row["split"] == HELDOUT}
