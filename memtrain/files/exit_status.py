"""The exit statuses of all commands: one table, which the commands use, print and document."""

from __future__ import annotations

import textwrap
from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    MISUSED = 2
    REPRODUCED = 3
    UNJUDGED = 4
    SIGNAL = 128


MEANING = {
    ExitStatus.DONE: "the command did its work",
    ExitStatus.FAILED: "it could not: the last lines say what was found, what was expected, and what helps",
    ExitStatus.MISUSED: "the command line or its configuration cannot be understood",
    ExitStatus.REPRODUCED: "`measure --fail_on`: the condition holds",
    ExitStatus.UNJUDGED: "`measure --fail_on`: nobody can tell whether it holds",
    ExitStatus.SIGNAL: "a signal stopped it, such as 130 for Ctrl-C; the last line is the command that continues",
}
"""The meaning of each status."""


def written(status: ExitStatus) -> str:
    """A status as the table writes it."""
    return "128+n" if status is ExitStatus.SIGNAL else str(int(status))


def table() -> list[str]:
    """The lines of the table."""
    lines = ["Exit status:"]
    for status, said in MEANING.items():
        lines += textwrap.wrap(said, 80, initial_indent=f"  {written(status):<7}", subsequent_indent=" " * 9)
    return lines


def by_signal(number: int) -> int:
    """The status of a command that a signal stopped.

    Args:
        number: the number of the signal.
    """
    return ExitStatus.SIGNAL + number
