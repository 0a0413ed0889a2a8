"""Printing that can fail but never ends a run: another encoding, a closed pipe, a full disk.

A character that the output's encoding lacks is written as `repr` would write it. If no program reads the output any
more, printing stops. The files of a run hold everything that is printed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


def careful_output() -> None:
    """Let standard output and error accept every text, whatever their encoding. Call this when a command starts."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the command began
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
            continue
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__:
        sys.stdout = _Unheard(sys.stdout)


class _Unheard:
    """Standard output with no reader guaranteed: text that cannot be written is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # The descriptor stays the same, so that text left in the stream does not raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        log.warning("Nothing more is printed (%s). The files hold it.", error.strerror)


@contextmanager
def harmless_output() -> Iterator[None]:
    """Within the context, printing that fails is given up, with a message in the log.

    Use it only around code that prints, because it also hides an `OSError` of a file that must be written.
    """
    try:
        yield
        sys.stdout.flush()
    except (UnicodeError, OSError, ValueError) as error:  # ValueError: the stream is closed
        if isinstance(error, BrokenPipeError):
            # Text that is left in the stream would raise again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        log.warning("The output could not be printed (%s: %s). The files hold it.", type(error).__name__, error)
