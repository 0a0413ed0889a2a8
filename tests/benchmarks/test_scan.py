"""The benchmark of the scan: its data, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain.data.source import open_source
from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT


@pytest.fixture
def data(scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scripts.scan_data, "PER_SHARD", 150)
    return str(scripts.scan_data.write_shards(tmp_path / "data", 200))


def test_one_image_in_a_hundred_is_a_copy(scripts: Modules, data: str) -> None:
    source = open_source(data)
    assert [sample.key for sample in source.samples] == [scripts.scan_data.key(row) for row in range(200)]
    copies = {row: scripts.scan_data.original(row) for row in range(100_000)}
    copies = {row: of for row, of in copies.items() if of is not None}
    assert len(copies) == 1000
    assert all(0 <= of < row and of not in copies for row, of in copies.items())
    assert copies[99] == 98
    assert source.load_image(99) != source.load_image(98)


def test_shards_that_are_there_are_not_made_again(scripts: Modules, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.scan_data, "_file", None)
    assert scripts.scan_data.write_shards(Path(data), 200) == data


def test_what_is_measured(scripts: Modules, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {what: scripts.scan.measure(what, data, str(tmp_path)) for what in ("decode", "describe", "scan")}
    assert {part["images"] for part in measured.values()} == {200}
    assert all(part["processor_seconds"] > 0 for part in measured.values())
    assert (measured["scan"]["copies"], measured["scan"]["copies_found"]) == (2, 2)
    many = {what: {**part, "processor_seconds": 10 * part["processor_seconds"]} for what, part in measured.items()}
    rows = {200: measured, 2000: many}
    assert scripts.scan.powers(rows) == {"200 to 2000": pytest.approx(1.0)}
    scripts.scan.show(rows)
    assert "2 of 2" in capsys.readouterr().out


def test_sizes_that_were_measured_are_not_measured_again(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = {"images": 1, "processor_seconds": 1.0, "seconds": 1.0, "images_per_second": 1.0, "memory_mb": 1.0}
    asked: list[str] = []

    def run(what: str, path: str) -> dict[str, object]:
        asked.append(f"{what} {path}")
        return {**part, "copies": 0, "copies_found": 0}

    monkeypatch.setattr(scripts.scan, "run", run)
    monkeypatch.setattr(scripts.scan, "write_shards", lambda folder, size: str(size))
    file = str(tmp_path / "figures.json")
    scripts.scan.benchmark([10], json=file)
    scripts.scan.benchmark([10, 20], json=file)
    assert asked == [f"{what} {size}" for size in (10, 20) for what in ("decode", "describe", "scan")]
