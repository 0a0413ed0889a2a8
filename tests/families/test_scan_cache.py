"""A scan is made once: what changes the families scans again, what does not is read from the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from memtrain.data.source import open_source
from memtrain.families import scan_cache
from memtrain.families.scan import ScanSettings
from memtrain.families.scan_cache import cached_scan, fingerprint

from .picture_folder import picture, with_copies, write_pictures


def scanned(data: Path, cache: Path, *, settings: ScanSettings | None = None):
    return cached_scan(open_source(str(data)), settings, cache, progress=False)


def test_a_second_start_scans_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    data, cache = with_copies(tmp_path / "data"), tmp_path / "cache"
    first = scanned(data, cache)
    assert capsys.readouterr().out.startswith("Scanned 45 images in ")
    monkeypatch.setattr(scan_cache, "scan", None)
    second = scanned(data, cache)
    assert capsys.readouterr().out == (
        "Families of 45 images, known from an earlier scan: 41 pictures; 2 have several files, the largest 4; "
        "1 caption belongs to several pictures, the largest to 2 files; 1 more could not be read.\n"
    )
    assert second.cached
    assert dict(second.families.pictures) == dict(first.families.pictures)
    cached_scan(open_source(str(data)), None, cache, quiet=True)
    assert capsys.readouterr().out == ""
    assert cached_scan(open_source(str(shutil.copytree(data, tmp_path / "moved"))), None, cache).cached


def test_the_result_lies_under_its_fingerprint(tmp_path: Path) -> None:
    data, cache = with_copies(tmp_path / "data"), tmp_path / "cache"
    scanned(data, cache)
    name = fingerprint(open_source(str(data)), ScanSettings(), cache)
    assert name is not None
    assert (cache / name / "families.parquet").is_file()
    assert json.loads((cache / name / "scan.json").read_text())["fingerprint"] == name


def test_whatever_changes_the_families_changes_the_fingerprint(tmp_path: Path) -> None:
    def of(name: str, **change: tuple[int, str]) -> str | None:
        files = {"a": (0, "x"), "b": (1, "y")} | change
        data = write_pictures(tmp_path / name, {f"{key}.png": (picture(n), text) for key, (n, text) in files.items()})
        return fingerprint(open_source(str(data)), ScanSettings(), tmp_path / "cache")

    same = of("one")
    others = [of("pixels", b=(2, "y")), of("caption", b=(1, "z")), of("more", c=(3, "z"))]
    assert of("again") == same
    assert len({same, *others}) == 4


def test_threads_do_not_change_the_fingerprint_and_descriptors_do(tmp_path: Path) -> None:
    source = open_source(str(with_copies(tmp_path / "data")))

    def of(settings: ScanSettings) -> str | None:
        return fingerprint(source, settings, tmp_path / "cache")

    other = SimpleNamespace(name="other", version="1")
    assert of(ScanSettings(workers=3)) == of(ScanSettings()) != of(ScanSettings(descriptor=other))  # type: ignore[arg-type]


def test_a_source_that_names_no_files_is_scanned_every_time(tmp_path: Path, monkeypatch) -> None:
    source = open_source(str(with_copies(tmp_path / "data")))
    monkeypatch.setattr(source, "stored_in", lambda index: None)
    for _ in range(2):
        assert not cached_scan(source, None, tmp_path / "cache", progress=False).cached
    assert not (tmp_path / "cache").exists()
