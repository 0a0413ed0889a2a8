"""A checkpoint file that is written beside the former one, read back, and only then takes its place.

1. The new file gets another name in the same folder, so that renaming it cannot leave half a file (Lightning's own way
   goes through the temporary folder, which may lie on another disk), and is brought to the disk.
2. It is read back: the checksum (CRC-32) of every tensor, and its structure as plain tensors and numbers.
3. The file that stood in its place is kept as `<name>.previous`, if it is whole itself; the new one takes its place.

So at every moment there is a whole checkpoint under one of the two names, from which :func:`usable` chooses. Where the
disk has no room for three, the one before the last is deleted first.

Cost: reading the file once more, in most cases from the memory of the operating system: 0.6 s for each GB where writing
it takes 6 s (one busy core, a local disk), and the room of one more checkpoint. Cannot: find what the disk loses later;
that is found when the checkpoint is read.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch.utils._pytree import tree_leaves

from memtrain.errors import RecordError
from memtrain.files.whole import free_bytes, naming_full_disk, to_disk

log = logging.getLogger(__name__)
PREVIOUS = ".previous"
"""Behind the name of a checkpoint that another one has replaced."""
ZIP = b"PK"
"""How every checkpoint that torch has written since version 1.6 begins."""


def previous_of(path: Path) -> Path:
    """Where the checkpoint is kept that the one at `path` has replaced."""
    return path.with_name(path.name + PREVIOUS)


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, and let it take its place when it can be read back.

    Args:
        content: as :func:`torch.save` takes it.
        path: of the file.

    Raises:
        DiskFullError: if there is no room; what stood there stands there still.
        RecordError: if it cannot be read back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        # Of a process that was killed while it wrote.
        left.unlink(missing_ok=True)
    needed = sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor))
    free, previous = free_bytes(path.parent), previous_of(path)
    if free is not None and free < 1.05 * needed and previous.exists() and what_is_wrong(path) is None:
        previous.unlink()
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with naming_full_disk(path, needed=needed):
            torch.save(content, unfinished)
            to_disk(unfinished)
        if (wrong := what_is_wrong(unfinished)) is not None:
            raise RecordError(
                f"{path} was written and cannot be read back: {wrong}",
                expected="what was written; the checkpoint before it is as it was",
                remedy="check the disk, or name another one, then continue from that checkpoint",
            )
        _keep(path, previous)
        unfinished.replace(path)
        to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Let the former file have a second name: there is no moment without a checkpoint at `path`."""
    if path.is_symlink() or not path.is_file() or what_is_wrong(path, every_byte=False) is not None:
        return
    second = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        os.link(path, second)
        second.replace(previous)
    except OSError:
        # A file system without links.
        path.replace(previous)


def what_is_wrong(path: Path, *, every_byte: bool = True) -> str | None:
    """Why a checkpoint cannot be used; None if it can, or is of a form that says nothing about itself.

    Args:
        path: of the file.
        every_byte: compare the checksum of every tensor, too, which reads the whole file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(ZIP))
        if not start:
            return "it is empty"
        if start != ZIP:
            return None
        with zipfile.ZipFile(path) as archive:
            if every_byte and (bad := archive.testzip()) is not None:
                return f"the checksum of {bad} does not fit"
        if every_byte:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        # Whole, and of a module that keeps more than tensors and numbers: its own choice.
        log.debug("%s holds more than plain tensors and numbers", path)
    except zipfile.BadZipFile:
        return "its end is missing"
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def usable(path: Path) -> Path:
    """The checkpoint to read: that at `path`, or the one before it if that is torn.

    Args:
        path: of a file that is there.

    Raises:
        RecordError: if neither is whole.
    """
    wrong = what_is_wrong(path)
    if wrong is None:
        return path
    previous = previous_of(path)
    if previous.is_file() and what_is_wrong(previous) is None:
        log.warning("%s is torn (%s): going on from %s, the checkpoint before it", path, wrong, previous)
        return previous
    beside = [other for other in path.parent.glob("*.ckpt") if other != path]
    others = sorted(other.name for other in beside if what_is_wrong(other) is None)
    raise RecordError(
        f"{path} is torn: {wrong}",
        expected="a checkpoint that was written whole, or the one before it beside it",
        remedy=f"continue from another one of this folder with --ckpt_path: {', '.join(others)}"
        if others
        else "restore the file from a copy, or start the training anew in another folder",
    )
