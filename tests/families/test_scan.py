"""A scan: what it finds, what it does with broken images, and that it goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError, DataError, RecordError
from memtrain.families.faiss_search import FaissSearch
from memtrain.families.look_parts import FEWEST
from memtrain.families.scan import ScanSettings, scan
from memtrain.families.search import ExactSearch
from memtrain.families.table import EXACT

from .picture_folder import ODD, picture, with_copies, write_pictures


def test_copies_are_one_picture_whatever_they_are_called(tmp_path: Path) -> None:
    found = scan(open_source(str(with_copies(tmp_path))), progress=False)
    assert found is not None
    assert list(found.pictures.items()) == [
        ("000.png", ["000.png", ODD, "sub/copy, of 0.png", "zoë 画.png"]),
        ("001.png", ["001.png", "copy of 1.png"]),
    ]
    assert found.families.reason[ODD] == EXACT
    assert set(found.broken) == {"broken.png"}
    assert "cannot be read" in found.broken["broken.png"]
    assert "broken.png" not in found.keys
    counts = found.counts()
    assert (counts["images"], counts["pictures"], counts["unreadable"]) == (45, 41, 1)
    assert (counts["pictures_with_several_files"], counts["files_of_these"], counts["largest_picture"]) == (2, 6, 4)
    assert found.images_per_second > 0


def test_captions_that_several_pictures_share(tmp_path: Path) -> None:
    found = scan(open_source(str(with_copies(tmp_path))), progress=False)
    assert found is not None
    # "picture number 1" belongs to two files of one picture, which is no sharing.
    assert list(found.captions.values()) == [["002.png", "other.png"]]
    assert found.counts()["shared_captions"] == 1


def test_any_object_with_samples_and_images_is_scanned() -> None:
    class Made:
        def __init__(self, samples) -> None:
            self.samples = samples

        def load_image(self, index: int) -> Image.Image:
            return picture(index % 20)

    class Sample:
        def __init__(self, number: int) -> None:
            self.key, self.caption = f"k{number}", f"text {number}"

    found = scan(Made([Sample(number) for number in range(40)]), progress=False)
    assert found is not None
    assert found.counts()["pictures"] == 20
    with pytest.raises(ConfigurationError, match="does not name the files of its images"):
        scan(Made([Sample(0)]), folder=Path("nowhere"), progress=False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b", "a"], "1 key.s. occur twice, 0 are not Unicode, first .'a'."),
        (["a", "\udcff.png"], "1 are not Unicode"),
        ([], "no samples"),
    ],
)
def test_keys_are_checked_before_the_work(keys: list[str], message: str) -> None:
    source = SimpleNamespace(samples=[SimpleNamespace(key=key, caption="x") for key in keys])
    with pytest.raises(DataError, match=message):
        scan(source, progress=False)


def test_more_images_than_all_are_compared_need_faiss_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memtrain.families.scan.faiss_is_there", lambda: False)
    assert isinstance(ScanSettings().searches(100_000), ExactSearch)

    def missing() -> None:
        raise ConfigurationError("not installed")

    monkeypatch.setattr("memtrain.families.scan.faiss_module", missing)
    with pytest.raises(ConfigurationError, match="not installed"):
        ScanSettings().searches(100_001)
    with pytest.raises(ConfigurationError, match="not installed"):
        ScanSettings(search="faiss").searches(10)
    assert isinstance(ScanSettings(search="exact").searches(10**9), ExactSearch)


def test_faiss_searches_from_some_size_on_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    assert isinstance(ScanSettings().searches(20_000), ExactSearch)
    assert isinstance(ScanSettings().searches(20_001), FaissSearch)
    source = open_source(str(with_copies(tmp_path)))
    found = scan(source, settings=ScanSettings(search="faiss"), progress=False)
    assert found is not None
    assert list(found.pictures) == ["000.png", "001.png"]


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, {f"{number}.png": (b"no image", "x") for number in range(3)})
    with pytest.raises(DataError, match="None of 3 images can be read: The image of sample"):
        scan(open_source(str(folder)), progress=False)


class Stopped(Exception):
    """The process was killed."""


class Counted:
    """A source that counts what is loaded, and dies at some image."""

    def __init__(self, folder: Path, *, dies_at: int | None = None) -> None:
        self.source, self.dies_at = open_source(str(folder)), dies_at
        self.samples, self.stored_in = self.source.samples, self.source.stored_in
        self.loaded: list[int] = []

    def load_image(self, index: int) -> Image.Image:
        if index == self.dies_at:
            raise Stopped
        self.loaded.append(index)
        return self.source.load_image(index)


def test_a_killed_scan_goes_on_and_finds_the_same(tmp_path: Path) -> None:
    folder = with_copies(tmp_path / "data", pictures=90, broken=False)
    undisturbed = scan(Counted(folder), folder=tmp_path / "a", progress=False)
    dies = Counted(folder, dies_at=2 * FEWEST + 3)
    with pytest.raises(Stopped):
        scan(dies, folder=tmp_path / "b", progress=False)
    goes_on = Counted(folder)
    found = scan(goes_on, folder=tmp_path / "b", progress=False)
    assert min(goes_on.loaded) >= FEWEST, "the first part was there"
    assert found is not None
    assert undisturbed is not None
    assert found.families == undisturbed.families
    assert found.threshold == undisturbed.threshold
    once_more = Counted(folder)
    assert scan(once_more, folder=tmp_path / "b", progress=False).families == found.families
    assert once_more.loaded == []


def test_exchanged_images_are_looked_at_again(tmp_path: Path) -> None:
    folder = with_copies(tmp_path / "data")
    scan(open_source(str(folder)), folder=tmp_path / "scan", progress=False)
    picture(500).save(folder / "copy of 1.png", "PNG")
    found = scan(open_source(str(folder)), folder=tmp_path / "scan", progress=False)
    assert found is not None
    assert list(found.pictures) == ["000.png"]


@pytest.mark.parametrize("count", [1, 3])
def test_shards_find_what_one_process_finds(tmp_path: Path, count: int) -> None:
    folder = with_copies(tmp_path / "data", pictures=90)
    alone = scan(open_source(str(folder)), progress=False)
    assert alone is not None
    results = []
    for index in range(count):
        source = Counted(folder)
        results.append(scan(source, folder=tmp_path / "scan", shard=(index, count), progress=False))
        assert len(source.loaded) <= -(-96 // FEWEST // count) * FEWEST
    assert results[:-1] == [None] * (count - 1)
    assert results[-1] is not None
    assert results[-1].families == alone.families
    assert results[-1].broken == alone.broken
    merged = scan(open_source(str(folder)), folder=tmp_path / "scan", shard=None, progress=False)
    assert merged is not None
    assert merged.families == alone.families


def test_nothing_is_merged_before_all_parts_are_there(tmp_path: Path) -> None:
    folder = with_copies(tmp_path / "data", pictures=90)
    scan(open_source(str(folder)), folder=tmp_path / "scan", shard=(0, 2), progress=False)
    with pytest.raises(RecordError, match="parts are missing"):
        scan(open_source(str(folder)), folder=tmp_path / "scan", shard=None, progress=False)
    with pytest.raises(ConfigurationError, match="a folder that all processes share"):
        scan(open_source(str(folder)), shard=(0, 2), progress=False)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    source = open_source(str(with_copies(tmp_path)))
    one, three = (scan(source, settings=ScanSettings(workers=workers), progress=False) for workers in (1, 3))
    assert one is not None
    assert three is not None
    assert (one.families, one.threshold, one.broken) == (three.families, three.threshold, three.broken)
    assert np.array_equal(one.sizes, three.sizes)


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="workers=0"):
        ScanSettings(workers=0)
