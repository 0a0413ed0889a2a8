"""Files that are whole or absent, even after a kill, a full disk or a power failure.

A file is written under another name in the same folder, flushed to the disk, and renamed into place. A rename within
one file system is never visible half done, and the folder is flushed to the disk after it. A full disk, a quota and a
limit on file sizes become one error that names the path and the free space. The earlier file stays as it was.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from memtrain.errors import DiskFullError

log = logging.getLogger(__name__)
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a limit on file sizes"}
"""The operating system's error numbers for missing space, with their meaning."""
SAID = ("no space left", "os error 28", "disk quota exceeded", "file too large")
"""The words of libraries that hide the operating system's error number."""
CUT_SHORT = ("pytorchstreamwriter failed", "inline_container", "unexpected pos")
"""The words of torch for a file that could not be written, without a reason."""
HARDLY_ANY = 2**20
"""The number of free bytes below which an unexplained failure to write counts as a full disk."""
REMEDY = "free space there, or write to another disk; then repeat the same command"


@contextmanager
def written_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give an unfinished file beside `path`, which becomes `path` at the end. The file is complete or absent.

    Args:
        path: the path of the file; its folder is made.
        durable: whether to flush the file to the disk before the rename, so that a power failure leaves the old or the
            new content. Files that can be made again and come in thousands do without.

    Raises:
        DiskFullError: if there is no space for it.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            if durable:
                to_disk(unfinished)
            unfinished.replace(path)
            if durable:
                to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def folder_whole(folder: Path) -> Iterator[Path]:
    """Give an unfinished folder, which becomes `folder` at the end.

    Args:
        folder: the folder, which may exist; files of the same names in it are replaced.

    Raises:
        DiskFullError: if there is no space for it.
    """
    unfinished = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        with naming_full_disk(folder):
            unfinished.mkdir(parents=True)
            yield unfinished
            files = [path for path in unfinished.rglob("*") if path.is_file()]
            for path in files:
                to_disk(path)
            if not folder.exists():
                unfinished.replace(folder)
                to_disk(folder.parent)
                return
            # The file that makes a folder a pipeline lies at its top, and comes last.
            for path in sorted(files, key=lambda path: -len(path.relative_to(unfinished).parts)):
                place = folder / path.relative_to(unfinished)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, if the file system can do so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        log.debug("%s could not be opened to bring it to the disk: %s", path, error)
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in FULL or error.errno == errno.EIO:
            raise
        log.debug("%s could not be brought to the disk: %s", path, error)
    finally:
        os.close(descriptor)


@contextmanager
def naming_full_disk(path: Path, *, needed: int | None = None, remedy: str = REMEDY) -> Iterator[None]:
    """Within the context, a failure for lack of space becomes an error that says so.

    Args:
        path: the file or folder that is written to.
        needed: the size in bytes that the file will have, if it is known.
        remedy: the remedy in the error.

    Raises:
        DiskFullError: in place of the other error.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        reason = no_space(error, path)
        if reason is None:
            raise
        free = free_bytes(path)
        known = "" if needed is None else f"{needed:,} bytes needed, "
        raise DiskFullError(
            f"{path} could not be written: {reason} ({known}{'unknown' if free is None else f'{free:,}'} bytes free)",
            expected="enough space; the earlier file is unchanged",
            remedy=remedy,
        ) from error


def no_space(error: BaseException, path: Path) -> str | None:
    """Return why there is no space, if an error while writing to `path` means that; None otherwise."""
    if isinstance(error, OSError) and error.errno in FULL:
        return FULL[error.errno]
    said = str(error).lower()
    if any(words in said for words in SAID):
        return "no space is left"
    free = free_bytes(path)
    if free is not None and free < HARDLY_ANY and any(words in said for words in CUT_SHORT):
        return FULL[errno.ENOSPC]
    return None


def free_bytes(path: Path) -> int | None:
    """Return the free bytes on the disk of a path, which need not exist; None if they are not known."""
    for folder in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
