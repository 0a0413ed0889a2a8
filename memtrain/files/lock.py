"""One process at a time in a folder: two runs would mix their files.

The lock is held by the operating system (`flock`), so a process that is killed leaves none behind. On file systems that
know no locks (some of clusters) it is not there, and that is said.
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
"""Of the file in the folder."""


@contextmanager
def locked(folder: Path, *, doing: str, name: str = NAME) -> Iterator[None]:
    """Hold a folder while something is written to it.

    Args:
        folder: made if it is not there.
        doing: such as `train`, for whoever finds it locked.
        name: of the lock's file: what may be written at the same time has locks of different names.

    Raises:
        ConfigurationError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / name) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigurationError(
                shown(f"Another process writes to {folder}: {file.read(300).strip() or 'unknown'}"),
                expected="one at a time in a folder",
                remedy="wait until it ends, or name another folder",
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not run two commands in it at once", folder, error.strerror)
        file.truncate(0)
        file.write(f"{doing}, process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _opened(path: Path) -> TextIO:
    """The lock's file; a link is not followed, and nothing else than a file is taken for one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "r+", encoding="utf-8")
        os.close(descriptor)
        said = "it is no file"
    except OSError as error:
        said = error.strerror or str(error)
    raise ConfigurationError(
        shown(f"{path} cannot be held as a lock: {said}"), expected="a file of this name, or none", remedy="remove it"
    )
