"""One process at a time in a folder, because two runs would mix their files.

The operating system holds the lock (`flock`), so a killed process leaves none behind. Some file systems (of some
clusters) have no locks. Then nothing is locked, and a warning says so.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from memtrain.errors import ConfigurationError
from memtrain.files.shown import shown

log = logging.getLogger(__name__)
NAME = ".lock"
"""The name of the lock's file in the folder."""


@contextmanager
def locked(folder: Path, *, doing: str, name: str = NAME) -> Iterator[None]:
    """Hold a folder while something is written to it.

    Args:
        folder: the folder, which is made if it does not exist.
        doing: the name of the work, such as `train`, for another process that finds the folder locked.
        name: the name of the lock's file; files that may be written at the same time have locks of different names.

    Raises:
        ConfigurationError: if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / name) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigurationError(
                shown(f"Another process writes to {folder}: {file.read(300).strip() or 'unknown'}"),
                expected="one process at a time in a folder",
                remedy="wait until that process ends, or name another folder",
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s). Do not run two commands in it at once.", folder, error.strerror)
        file.truncate(0)
        file.write(f"{doing}, process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _opened(path: Path) -> TextIO:
    """Open the lock's file. Links are not followed, and anything but a plain file is refused."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "r+", encoding="utf-8")
        os.close(descriptor)
        said = "it is not a file"
    except OSError as error:
        said = error.strerror or str(error)
    raise ConfigurationError(
        shown(f"{path} cannot be held as a lock: {said}"), expected="a file of this name, or none", remedy="remove it"
    )
