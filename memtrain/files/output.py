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


def printed(text: str, stream: Any = None) -> OSError | None:
    """Print a text that no file holds, such as help.

    Args:
        text: the text, without the end of its last line.
        stream: where it goes; default standard output.

    Returns:
        Why the text could not be written; None if it was, or if its reader has gone.
    """
    stream = sys.stdout if stream is None else stream
    if isinstance(stream, _Unheard):
        stream = stream.stream
    if stream is None:  # it was closed before the command began
        return None
    try:
        stream.write(text + "\n")
        stream.flush()
    except OSError as error:
        _drop_rest(stream)
        return None if isinstance(error, BrokenPipeError) else error
    return None


def print_or_exit(text: str) -> None:
    """Print a text that no file holds, and end the program with status 1 if it cannot be written.

    Args:
        text: the text.
    """
    if (error := printed(text)) is not None:
        sys.exit(f"The text could not be written: {error.strerror}")


def is_own_output(stream: Any) -> bool:
    """Whether a stream is the standard output that the program began with."""
    return stream is not None and getattr(stream, "stream", stream) is sys.__stdout__


def _drop_rest(stream: Any) -> None:
    """Let text that is left in a stream go nowhere, so that it does not raise again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Unheard:
    """Standard output with no reader guaranteed: text that cannot be written is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self.stream.write(text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _drop_rest(self.stream)
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
            _drop_rest(sys.stdout)
        log.warning("The output could not be printed (%s: %s). The files hold it.", type(error).__name__, error)
