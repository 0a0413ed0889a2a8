"""`memtrain scan`: what a user types, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from memtrain import cli
from memtrain.data.selection import read_keys
from memtrain.families.table import Families
from tests.conftest import ROOT
from tests.families.picture_folder import ODD, with_copies

FILES = {"families.parquet", "scan.json", "exclude.csv", "report.html"}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return with_copies(tmp_path / "my images")


def config(file: Path, **data: object) -> str:
    file.write_text(yaml.safe_dump({"trainer": {"max_steps": 3}, **({"data": data} if data else {})}))
    return str(file)


def test_a_folder_is_all_that_has_to_be_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train(["scan", "my images"])
    output = Path("runs/scan")
    assert {path.name for path in output.iterdir()} >= FILES
    printed = capsys.readouterr().out
    assert "Scan of my images" in printed
    for words in (
        "Images",
        "45",
        "Pictures",
        "41",
        "6 files; the largest picture has 4",
        "Unreadable",
        "images a second",
    ):
        assert words in printed
    fit = "memtrain train --config tiny --data.init_args.path 'my images'"
    assert f"{fit} --data.init_args.exclude runs/scan/exclude.csv" in printed
    assert len(Families.read(output / "families.parquet").picture_members("000.png")) == 4
    assert json.loads((output / "scan.json").read_text())["path"] == "my images"


def test_what_is_left_out_is_all_but_one_of_each_picture(data: Path) -> None:
    cli.train(["scan", "my images", "--output", "out"])
    assert read_keys("out/exclude.csv") == {ODD, "sub/copy, of 0.png", "zoë 画.png", "copy of 1.png"}
    with open("out/exclude.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["kept"], row["reason"]) for row in rows} == {("000.png", "exact"), ("001.png", "exact")}


def test_training_leaves_out_what_the_list_names(tmp_path: Path) -> None:
    from memtrain.data.module import TextImageDataModule

    with_copies(tmp_path / "whole", broken=False)
    cli.train(["scan", "whole", "--descriptor", "memtrain.families.descriptors.builtin.BuiltIn"])
    data = TextImageDataModule("whole", exclude="runs/scan/exclude.csv", heldout_fraction=0.0, resolution=16)
    data.build()
    assert data.train_dataset is not None
    assert {sample.key for sample in data.train_dataset.samples} == {*(f"{n:03}.png" for n in range(40)), "other.png"}


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "mine.yaml"],
        ["--config", "other.yaml", "--config", "mine.yaml", "--config", "overlay.yaml"],
        ["--config", "other.yaml", "--data.init_args.path", "my images"],
        ["--data.init_args.path", "my images"],
        ["--config=flat.yaml"],
        ["my images", "--config", "other.yaml"],
    ],
)
def test_data_are_named_as_for_training(data: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config(Path("mine.yaml"), class_path="memtrain.data.module.TextImageDataModule", init_args={"path": "my images"})
    config(Path("other.yaml"), class_path="memtrain.data.module.TextImageDataModule", init_args={"path": "nowhere"})
    config(Path("flat.yaml"), path="my images")
    config(Path("overlay.yaml"))
    cli.train(["scan", *words])
    assert "Scan of my images" in capsys.readouterr().out


def test_the_suggested_command_has_the_configurations(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(Path("mine.yaml"), init_args={"path": "my images"})
    config(Path("overlay.yaml"))
    cli.train(["scan", "--config", "mine.yaml", "--config", "overlay.yaml"])
    assert "memtrain train --config mine.yaml --config overlay.yaml --data.init_args.exclude" in capsys.readouterr().out


def test_without_data_the_embedded_ones_are_scanned() -> None:
    from memtrain.cli.scan import command_parser, data_path

    assert (
        data_path(command_parser().parse_args(["--config", str(ROOT / "configs/tiny.yaml")])) == "assets/clipart-pd.tar"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "DataError: The data path 'nowhere' does not exist"),
        (["one", "--data.init_args.path", "two"], "Two data sets are named: one and two"),
        (["--config", "missing.yaml"], "There is no configuration 'missing.yaml'"),
        (["--config", "empty.yaml"], "empty.yaml holds nothing"),
        (["my images", "--shard", "4/4"], "shard='4/4' names no share of the work"),
        (["my images", "--shard", "merge"], "parts are missing"),
        (["my images", "--output", "empty.yaml"], "Results cannot be written to empty.yaml"),
        (["my images", "--workers", "0"], "workers=0"),
    ],
)
def test_mistakes_are_named(data: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.yaml").write_text("")
    with pytest.raises(SystemExit) as ended:
        cli.train(["scan", *words])
    assert message in (capsys.readouterr().err if ended.value.code == 2 else str(ended.value.code))


def test_parts_are_put_together_by_the_last(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train(["scan", "my images", "--shard", "0/2"])
    assert "Part 0/2 of the images is done" in capsys.readouterr().out
    assert not Path("runs/scan/scan.json").exists()
    cli.train(["scan", "my images", "--shard", "1/2"])
    assert "Scan of my images" in capsys.readouterr().out
    cli.train(["scan", "my images", "--shard", "merge"])
    assert {path.name for path in Path("runs/scan").iterdir()} >= FILES


def test_a_job_array_shares_the_images(data: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for task, words in (("0", "Part 0/2 of the images is done"), ("1", "Scan of my images")):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        cli.train(["scan", "my images", "--shard", "array"])
        assert words in capsys.readouterr().out


def test_a_job_of_its_own_puts_the_parts_of_an_array_together(data: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MEMTRAIN_MERGE", "job")
    for part in ("0/2", "1/2"):
        cli.train(["scan", "my images", "--shard", part])
        assert "written by the job that waits for all parts" in " ".join(capsys.readouterr().out.split())
    assert not Path("runs/scan/scan.json").exists()
    cli.train(["scan", "my images", "--shard", "merge"])
    assert "Scan of my images" in capsys.readouterr().out


def test_a_scan_of_other_data_is_kept(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_copies(tmp_path / "others", pictures=30)
    cli.train(["scan", "my images"])
    cli.train(["scan", "my images"])
    assert not Path("runs/scan-1").exists()
    cli.train(["scan", "others"])
    assert "runs/scan held a scan of my images; it is kept as runs/scan-1" in capsys.readouterr().out
    assert {path.name for path in Path("runs/scan-1").iterdir()} == FILES
    assert json.loads(Path("runs/scan/scan.json").read_text())["path"] == "others"


def test_help_shows_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    cli.train(["scan", "--help_all"])
    shown = capsys.readouterr().out
    assert "\n  memtrain scan my_folder\n" in shown
    for option in ("--config", "--data.init_args.path", "--output", "--shard", "--descriptor", "--workers"):
        assert option in shown


def test_scanning_waits_for_no_trainer() -> None:
    code = "import sys, memtrain.cli.scan; print(sorted({'lightning', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
