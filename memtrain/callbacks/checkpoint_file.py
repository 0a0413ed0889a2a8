"""Checkpoint files that are read back before they replace the former file.

1. The new file gets another name in the same folder and is flushed to the disk, so a rename cannot leave half a file.
   Lightning's own code uses the temporary folder, which may lie on another disk.
2. It is read back: the checksum (CRC-32) of every tensor, and its structure as plain tensors and numbers.
3. The former file is kept as `<name>.previous`, if it is whole, and the new file gets the former name.

So at every moment one of the two names holds a whole checkpoint, and :func:`usable` chooses it. If the disk has no room
for three files, the one before the last is deleted first.

Cost: reading the file once more, in most cases from the memory of the operating system. It takes 0.6 s for each GB, and
writing takes 6 s (one busy core, a local disk). One more checkpoint takes room on the disk. Cannot: detect later losses
on the disk. Reading the checkpoint detects them.
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
"""Ending of the name of a replaced checkpoint."""
ZIP = b"PK"
"""First bytes of every checkpoint that torch has written since version 1.6."""


def previous_of(path: Path) -> Path:
    """Return the path of the checkpoint that the file at `path` has replaced."""
    return path.with_name(path.name + PREVIOUS)


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, read it back, and then replace the former file.

    Args:
        content: the content for :func:`torch.save`.
        path: the path of the file.

    Raises:
        DiskFullError: if there is no room. The former file is still in its place.
        RecordError: if the new file cannot be read back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        # A killed process left this file while it wrote.
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
                expected="the written content; the checkpoint before it is unchanged",
                remedy="check the disk, or name a folder on another disk, then continue from the checkpoint before",
            )
        _keep(path, previous)
        unfinished.replace(path)
        to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give the former file a second name, so that a checkpoint stands at `path` at every moment."""
    if path.is_symlink() or not path.is_file() or what_is_wrong(path, every_byte=False) is not None:
        return
    second = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        os.link(path, second)
        second.replace(previous)
    except OSError:
        # This file system has no links.
        path.replace(previous)


def what_is_wrong(path: Path, *, every_byte: bool = True) -> str | None:
    """Return the reason why a checkpoint cannot be used; None if it can be used or its format has no checksums.

    Args:
        path: the path of the file.
        every_byte: whether to compare the checksum of every tensor too, which reads the whole file.
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
        # The file is whole. Its module chose to keep more than tensors and numbers.
        log.debug("%s holds more than plain tensors and numbers", path)
    except zipfile.BadZipFile:
        return "its end is missing"
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def usable(path: Path) -> Path:
    """Return the checkpoint to read: the file at `path`, or the one before it if this file is torn.

    Args:
        path: the path of an existing file.

    Raises:
        RecordError: if neither file is whole.
    """
    wrong = what_is_wrong(path)
    if wrong is None:
        return path
    previous = previous_of(path)
    if previous.is_file() and what_is_wrong(previous) is None:
        log.warning("%s is torn (%s). The run continues from %s, the checkpoint before it", path, wrong, previous)
        return previous
    beside = [other for other in path.parent.glob("*.ckpt") if other != path]
    others = sorted(other.name for other in beside if what_is_wrong(other) is None)
    raise RecordError(
        f"{path} is torn: {wrong}",
        expected="a complete checkpoint, or a complete earlier one next to it",
        remedy=f"continue from another one of this folder with --ckpt_path: {', '.join(others)}"
        if others
        else "restore the file from a copy, or start the training again in another folder",
    )
