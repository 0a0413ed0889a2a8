import pytest

from memtrain.data.kept_looks import KeptLooks
from memtrain.data.source import open_source
from memtrain.families.scan import ScanSettings, scan

from ..conftest import encoded_image


@pytest.fixture
def shard(write_shard):
    files = {f"{number}.png": encoded_image(number) for number in range(4)}
    return write_shard(files | {f"{number}.txt": b"a caption" for number in range(4)}, name="data/a.tar")


def opened(shard, folder, scanned=None):
    source = open_source(str(shard))
    source.kept_looks = KeptLooks(source, folder, scanned=scanned, settings=ScanSettings())
    return source


def looks(source):
    return [source.look(index) for index in range(4)]


def test_what_was_seen_is_known_at_the_next_start_without_decoding(shard, tmp_path, monkeypatch):
    plain = looks(open_source(str(shard)))
    first = opened(shard, tmp_path / "looks")
    assert first.known_look(0) is None
    assert looks(first) == plain
    first.kept_looks.keep()
    again = opened(shard, tmp_path / "looks")
    monkeypatch.setattr(again, "load_image", None)
    assert looks(again) == plain


def test_a_scan_for_families_is_asked_too(shard, tmp_path, monkeypatch):
    plain = looks(open_source(str(shard)))
    scan(open_source(str(shard)), folder=tmp_path / "families", progress=False)
    found = opened(shard, None, scanned=tmp_path / "families")
    monkeypatch.setattr(found, "load_image", None)
    assert looks(found) == plain


@pytest.mark.parametrize("change", ["changed", "spoilt"])
def test_files_that_changed_are_looked_at_again(shard, write_shard, tmp_path, change):
    first = opened(shard, tmp_path / "looks")
    looks(first)
    first.kept_looks.keep()
    if change == "spoilt":
        next((tmp_path / "looks").iterdir()).write_bytes(b"spoilt")
    else:
        files = {f"{number}.png": encoded_image(number + 5) for number in range(4)}
        write_shard(files | {f"{number}.txt": b"a longer caption" for number in range(4)}, name="data/a.tar")
    again = opened(shard, tmp_path / "looks")
    assert again.known_look(0) is None
    assert looks(again) == looks(open_source(str(shard)))
