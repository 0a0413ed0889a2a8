"""One process at a time in a folder: two runs would mix their files.

The lock is held by the operating system (`flock`), so a process that is killed leaves none behind. On file systems that
know no locks (some of clusters) it is not there, and that is said.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memtrain.errors import ConfigurationError

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
    with (folder / name).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigurationError(
                f"Another process writes to {folder}: {file.read().strip() or 'unknown'}",
                expected="one at a time in a folder",
                remedy="wait until it ends, or name another folder",
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not run two commands in it at once", folder, error.strerror)
        file.truncate(0)
        file.write(f"{doing}, process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
