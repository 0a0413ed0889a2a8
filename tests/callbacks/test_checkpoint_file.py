"""Checkpoints that are whole: written beside the former one, read back, kept twice."""

from __future__ import annotations

import errno
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from memtrain.callbacks import checkpoint_file
from memtrain.callbacks.checkpoint_file import previous_of, usable, what_is_wrong, write_checkpoint
from memtrain.errors import DiskFullError, RecordError


def content(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((64, 64), float(step))}}


def step_of(path: Path) -> int:
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A checkpoint of step 2, and that of step 1 which it has replaced."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        write_checkpoint(content(step), path)
    return path


def test_the_former_checkpoint_is_kept_beside_the_new_one(two: Path) -> None:
    assert (step_of(two), step_of(previous_of(two))) == (2, 1)
    assert sorted(path.name for path in two.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]
    write_checkpoint(content(3), two)
    assert (step_of(two), step_of(previous_of(two))) == (3, 2)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, emptied, flipped])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    damage: Any, two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(two)
    with caplog.at_level(logging.WARNING):
        assert usable(two) == previous_of(two)
    assert "is torn (" in caplog.text and "The run continues from" in caplog.text


def test_without_a_whole_one_the_others_of_the_folder_are_named(two: Path) -> None:
    write_checkpoint(content(1), two.with_name("step=1.ckpt"))
    for path in (two, previous_of(two)):
        cut(path)
    with pytest.raises(RecordError, match=r"is torn.*(?s:.*)--ckpt_path: step=1\.ckpt"):
        usable(two)


def test_a_torn_file_never_takes_the_place_of_the_whole_one_before(two: Path) -> None:
    cut(two)
    write_checkpoint(content(3), two)
    assert (step_of(two), step_of(previous_of(two))) == (3, 1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_killed_while_it_saves_leaves_the_former_checkpoint(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (child := os.fork()) == 0:

        def half(content: Any, path: Path) -> None:
            path.write_bytes(b"PK half")
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(torch, "save", half)
        write_checkpoint(content(3), two)
    os.waitpid(child, 0)
    assert len(list(two.parent.iterdir())) == 3, "the unfinished file is left"
    assert usable(two) == two and step_of(two) == 2
    write_checkpoint(content(3), two)
    assert len(list(two.parent.iterdir())) == 2, "and cleared away by the next"


def test_what_cannot_be_read_back_does_not_take_the_place(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def torn(content: Any, path: Path) -> None:
        save(content, path)
        flipped(path)

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(RecordError, match="cannot be read back"):
        write_checkpoint(content(3), two)
    assert (step_of(two), step_of(previous_of(two))) == (2, 1)
    assert len(list(two.parent.iterdir())) == 2


def test_a_full_disk_names_what_is_needed_and_keeps_the_former(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskFullError, match=r"16,384 bytes needed, .* bytes free"):
        write_checkpoint(content(3), two)
    assert step_of(two) == 2 and len(list(two.parent.iterdir())) == 2


def test_where_there_is_no_room_for_three_the_one_before_the_last_goes_first(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_file, "free_bytes", lambda path: 100)
    seen = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda c, p: (seen.append(previous_of(two).exists()), save(c, p)))
    write_checkpoint(content(3), two)
    assert seen == [False]
    assert (step_of(two), step_of(previous_of(two))) == (3, 2)


def test_a_checkpoint_of_another_form_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(content(1), path, _use_new_zipfile_serialization=False)
    assert what_is_wrong(path) is None
