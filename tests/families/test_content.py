"""Files known again: read once, then by size and time alone; what changed is seen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from memtrain.data.source import open_source
from memtrain.families import content
from memtrain.families.content import content_of, file_digests, files_of

LONG_AGO = 1_600_000_000


def write(path: Path, text: str, *, changed: int = LONG_AGO) -> Path:
    path.write_text(text)
    os.utime(path, (changed, changed))
    return path


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read."""
    read: list[Path] = []
    digest = content._digest

    def noted(file: Path) -> tuple[int, int, str]:
        read.append(file)
        return digest(file)

    monkeypatch.setattr(content, "_digest", noted)
    return read


def test_a_file_is_read_once(tmp_path: Path, read_files: list[Path]) -> None:
    files = [write(tmp_path / name, name) for name in "ab"]
    known = tmp_path / "cache" / "files.parquet"
    first = file_digests([*files, files[0]], known)
    assert first == {file: hashlib.sha256(file.name.encode()).hexdigest() for file in files}
    assert sorted(read_files) == files
    assert file_digests(files, known, workers=2) == first
    assert len(read_files) == 2
    write(files[0], "c", changed=LONG_AGO + 1)
    assert file_digests(files, known)[files[0]] == hashlib.sha256(b"c").hexdigest()
    assert read_files[2:] == [files[0]]


def test_what_has_just_changed_is_read_again(tmp_path: Path, read_files: list[Path]) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    known = tmp_path / "files.parquet"
    file_digests([file], known)
    file_digests([file], known)
    assert len(read_files) == 2


def test_a_spoilt_table_only_costs_time(tmp_path: Path, read_files: list[Path]) -> None:
    file = write(tmp_path / "a", "a")
    known = tmp_path / "files.parquet"
    known.write_bytes(b"nonsense")
    file_digests([file], known)
    file_digests([file], known)
    assert len(read_files) == 1


def test_the_content_of_a_source_is_its_keys_and_the_bytes_of_its_images(tmp_path: Path, write_folder) -> None:
    known = tmp_path / "files.parquet"

    def of(folder: Path) -> str | None:
        return content_of(open_source(str(folder)), known)

    folder = write_folder({"a.png": "x", "b.png": "y"})
    first = of(folder)
    assert first is not None
    assert first == of(write_folder({"a.png": "other words", "b.png": "y"}, name="copied")), "captions and place"
    assert first != of(write_folder({"c.png": "x", "b.png": "y"}, name="renamed"))
    pixels = folder / "a.png", folder / "b.png"
    pixels[0].write_bytes(pixels[1].read_bytes())
    assert of(folder) != first


def test_shards_are_known_by_their_bytes(tmp_path: Path, write_shard) -> None:
    from tests.conftest import encoded_image

    def of(number: int, name: str) -> str | None:
        files = {"a.png": encoded_image(number), "a.txt": b"x"}
        return content_of(open_source(str(write_shard(files, name=name))), tmp_path / "files.parquet")

    assert of(0, "one.tar") == of(0, "two.tar") != of(1, "three.tar")


def test_a_source_that_names_no_files_has_no_known_content(tmp_path: Path) -> None:
    class Made:
        samples = ()

    assert content_of(Made(), tmp_path / "files.parquet") is None
    assert files_of(Made()) is None


def test_files_are_the_same_by_name_size_and_time_without_reading_them(write_folder, read_files: list[Path]) -> None:
    folder = write_folder({"a.png": "x", "b.png": "y"})

    def of() -> str | None:
        return files_of(open_source(str(folder)))

    first = of()
    assert first is not None
    assert of() == first
    os.utime(folder / "a.png", (LONG_AGO, LONG_AGO))
    second = of()
    assert second != first
    with (folder / "a.png").open("ab") as file:
        file.write(b"x")
    os.utime(folder / "a.png", (LONG_AGO, LONG_AGO))
    assert of() not in (first, second)
    assert read_files == []
