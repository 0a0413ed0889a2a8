"""The fault table of training data: each broken input, with `stop` and with `skip`.

With `stop` one error names all that is broken before training; with `skip` the others are left; both list it. What
breaks while a run is under way is met by the loader: another sample takes its place, the same one after every resume.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from memtrain.data.dataset import BROKEN
from memtrain.data.module import TextImageDataModule
from memtrain.errors import DataError
from tests.conftest import ROOT, encoded_image

SHARDS, EACH = 4, 10


def write(folder: Path) -> Path:
    """Shards of samples `000`, `001`, ..."""
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(EACH * shard, EACH * (shard + 1)):
                for kind, data in (("png", encoded_image(number % 25)), ("txt", f"picture {number}".encode())):
                    info = tarfile.TarInfo(f"{number:03}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def rewritten(shard: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]) -> None:
    """Write a shard again, each member as `change` makes it, or without it."""
    with tarfile.open(shard) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(shard, "w") as tar:
        for info, data in filter(None, (change(*member) for member in members)):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def without(folder: Path, name: str) -> None:
    rewritten(folder / "1.tar", lambda info, data: None if info.name == name else (info, data))


def torn(folder: Path) -> None:
    rewritten(folder / "1.tar", lambda info, data: (info, data[:40] if info.name == "013.png" else data))


def linked(folder: Path) -> None:
    def change(info: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if info.name == "013.png":
            info.type, info.linkname, data = tarfile.SYMTYPE, "/etc/passwd", b""
        return info, data

    rewritten(folder / "1.tar", change)


def start_of(shard: Path, name: str) -> int:
    with tarfile.open(shard) as tar:
        return tar.getmember(name).offset


def cut(folder: Path) -> None:
    """In the middle of 018.png."""
    shard = folder / "1.tar"
    shard.write_bytes(shard.read_bytes()[: start_of(shard, "018.png") + 520])


def cut_between(folder: Path) -> None:
    shard = folder / "1.tar"
    shard.write_bytes(shard.read_bytes()[: start_of(shard, "018.png")])


def damaged(folder: Path) -> None:
    shard = folder / "1.tar"
    at, data = start_of(shard, "018.png"), shard.read_bytes()
    shard.write_bytes(data[:at] + b"x" * 512 + data[at + 512 :])


class Fault(NamedTuple):
    """A row of the table.

    Attributes:
        make: breaks a folder of shards.
        left: samples that can be used.
        listed: keys (empty for a shard) of the list.
        reason: what the list and the error say.
    """

    make: Callable[[Path], None]
    left: int
    listed: list[str]
    reason: str


TABLE = {
    "no caption": Fault(lambda folder: without(folder, "013.txt"), 39, ["013"], "no caption"),
    "no image": Fault(lambda folder: without(folder, "013.png"), 39, ["013"], "no image"),
    "torn image": Fault(torn, 39, ["013"], "identif|truncated"),
    "link": Fault(linked, 39, ["", "013"], "links"),
    "cut inside of a file": Fault(cut, 38, [""], "cut|unexpected end"),
    "cut between files": Fault(cut_between, 38, [""], "cut short"),
    "damaged header": Fault(damaged, 38, [""], "cut short|header"),
    "missing shard": Fault(lambda folder: (folder / "1.tar").unlink(), 30, [""], "not exist"),
}


def module(tmp_path: Path, path: str, **settings: object) -> TextImageDataModule:
    data = TextImageDataModule(
        path, resolution=8, families="off", heldout_fraction=0.0, batch_size=4, **{"broken_share": 0.3, **settings}
    )
    data.trainer = SimpleNamespace(global_rank=0, default_root_dir=str(tmp_path / "run"), ckpt_path=None)
    return data


def listed(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "run" / "broken.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "shards")


@pytest.mark.parametrize("name", TABLE)
def test_what_a_listing_or_a_look_shows(tmp_path, shards, name):
    fault = TABLE[name]
    fault.make(shards)
    path = f"{shards}/{{0..3}}.tar"
    with pytest.raises(DataError) as stopped:
        module(tmp_path, path).build()
    said = str(stopped.value)
    assert "broken skip" in said and ("013" in said or "1.tar" in said)
    rows = listed(tmp_path)
    assert sorted(row["key"] for row in rows) == fault.listed
    assert re.search(fault.reason, rows[0]["reason"])
    assert all(row["shard"] == str(shards / "1.tar") for row in rows)
    data = module(tmp_path, path, broken="skip")
    data.build()
    assert len(data.train_dataset.samples) == fault.left
    assert listed(tmp_path) == rows
    if fault.left < 38:
        with pytest.raises(DataError, match="broken_share"):
            module(tmp_path, path, broken="skip", broken_share=0.2).build()


def test_all_are_told_at_once_and_excluded_ones_are_not_looked_at(tmp_path, shards):
    for break_it in (torn, lambda folder: without(folder, "014.txt"), lambda folder: (folder / "3.tar").unlink()):
        break_it(shards)
    path = f"{shards}/{{0..3}}.tar"
    with pytest.raises(DataError, match=r"12 of 40 samples"):
        module(tmp_path, path).build()
    assert sorted(row["key"] for row in listed(tmp_path)) == ["", "013", "014"]
    (shards / "3.tar").write_bytes((write(tmp_path / "again") / "3.tar").read_bytes())
    module(tmp_path, path, exclude=["013", "014"]).build()
    assert not (tmp_path / "run" / "broken.csv").exists()


def visited(data: TextImageDataModule, start: int = 0) -> tuple[list[str], list[str]]:
    """Keys of all visits from one on, and keys of those that another has taken the place of."""
    items = [data.train_dataset[index] for index in range(start, len(data.train_dataset))]
    batches = [{"key": [item["key"]], "caption": [item["caption"]], BROKEN: [item[BROKEN]]} for item in items]
    for batch in batches:
        data.on_before_batch_transfer(batch, 0)
        assert BROKEN not in batch
    return [item["key"] for item in items], [sample.key for sample in data.train_dataset.samples][start:]


@pytest.mark.parametrize(("gone", "lost"), [(torn, 1), (lambda folder: (folder / "1.tar").unlink(), 10)])
def test_what_breaks_while_a_run_is_under_way(tmp_path, shards, gone, lost):
    path = f"{shards}/{{0..3}}.tar"
    data, strict = module(tmp_path, path, broken="skip", broken_share=0.3), module(tmp_path, path)
    data.build()
    strict.build()
    gone(shards)
    keys, names = visited(data)
    changed = [index for index, (key, name) in enumerate(zip(keys, names, strict=True)) if key != name]
    assert changed == ([13] if lost == 1 else list(range(10, 20)))
    assert visited(data, 12)[0] == keys[12:], "another one takes the place after a resume"
    assert len(listed(tmp_path)) == 1, "a shard is told once"
    with pytest.raises(DataError, match="013"):
        strict.train_dataset[13]
    again = module(tmp_path, path, broken="skip", broken_share=lost / 40 - 0.01)
    again.train_dataset, again.heldout_dataset, again.broken.folder = (*data._built(), tmp_path / "other")
    with pytest.raises(DataError, match="turned out to be broken"):
        visited(again)


def test_workers_report_what_is_broken(tmp_path, shards):
    data = module(tmp_path, f"{shards}/{{0..3}}.tar", broken="skip", num_workers=1)
    data.build()
    torn(shards)
    for batch in data.unique_dataloader(data.train_dataset):
        data.on_before_batch_transfer(batch, 0)
    assert [row["key"] for row in listed(tmp_path)] == ["013"]


def test_a_folder_of_images_goes_on_without_those_that_are_missing_or_have_no_caption(tmp_path, write_folder):
    table, beside = write_folder(20), write_folder(20, name="beside")
    (beside / "metadata.jsonl").unlink()
    for image in beside.glob("*.png"):
        image.with_suffix(".txt").write_text("a picture", encoding="utf-8")
    (beside / "image_03.txt").unlink()
    (table / "image_03.png").unlink()
    for folder, why in ((table, "not exist"), (beside, "no caption")):
        with pytest.raises(DataError, match=r"image_03\.png"):
            module(tmp_path, str(folder)).build()
        data = module(tmp_path, str(folder), broken="skip")
        data.build()
        assert len(data.train_dataset.samples) == 19
        (row,) = listed(tmp_path)
        assert row["key"] == "image_03.png" and row["shard"] == str(folder / "image_03.png") and why in row["reason"]


@pytest.mark.slow
def test_two_processes_find_the_same_and_neither_waits_for_the_other(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults.broken_data_process", str(tmp_path)]
    both = [
        subprocess.Popen(
            command, env={**shared, "RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    first, second = ([json.loads(line) for line in out.splitlines()] for out, _ in said)
    count = 2 * len(TABLE)
    assert len(first) > count, said[0][1]
    assert first[:count] == second[:count]
    for name, action, keys, error in first[:count]:
        assert (len(keys), error == "") == ((TABLE[name].left, True) if action == "skip" else (0, False))
    for row in (first[count], second[count]):
        assert "do not see the same data" in row[3]
    assert second[count + 1 :] == [], "its image breaks"
    assert "The image of sample '013'" in said[1][1]
    # Gloo tells the other that nobody is there any more, or ends it.
    assert both[0].returncode != 0 and both[1].returncode == 1
