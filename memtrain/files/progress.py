"""Progress of work that may take more than two seconds: a bar with the time left, or lines in a log.

On a terminal and in a notebook tqdm draws its bar. Elsewhere a line appears every :data:`SECONDS` seconds, and none if
the work ends sooner. `--quiet` turns both off (:func:`no_progress`), and so does `TQDM_DISABLE=1`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm as text_bar
from tqdm.auto import tqdm

SECONDS = 30.0
"""Seconds between two lines without a terminal."""
SOON = 2.0
"""Seconds that work may take without a bar."""
_off: list[bool] = []
_Base: Any = text_bar


def progress_bar(
    iterable: Iterable[Any] | None = None,
    desc: str = "",
    total: int | None = None,
    *,
    unit: str = "it",
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
    delay: float = 0.0,
) -> Any:
    """A bar, used as tqdm's: iterated over, or with `update()` within a `with` block.

    Args:
        iterable: the items of the work; None for a bar that is updated by hand.
        desc: the name of the work.
        total: the number of items; default that of the iterable.
        unit: the name of an item.
        initial: the number of items that are done already.
        leave: whether the bar stays on the screen when the work is done.
        disable: whether nothing is shown.
        delay: the seconds before a bar appears on a terminal, for work that is often short.
    """
    hidden = disable or bool(_off) or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    kind = tqdm if in_notebook() or on_terminal() else LogLines
    return kind(iterable, desc, total, leave, unit=unit, initial=initial, disable=hidden, delay=delay)


def say_aside(line: str) -> None:
    """Print a line about the progress to standard error, beside the bars; nothing with `--quiet`."""
    if not _off:
        tqdm.write(line, file=sys.stderr)


@contextmanager
def no_progress() -> Iterator[None]:
    """Within the context no progress is shown."""
    _off.append(True)
    try:
        yield
    finally:
        _off.pop()


def progress_is_off() -> bool:
    """Whether `--quiet` turned progress off."""
    return bool(_off)


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return bool(sys.stderr and sys.stderr.isatty())


def in_notebook() -> bool:
    """Whether tqdm draws its bars in a notebook."""
    return "notebook" in str(tqdm.__mro__)


class LogLines(_Base):
    """Progress as lines of a log: what is done, how long it took, and how long the rest will take."""

    disable: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lines, self._told = 0, -1
        super().__init__(*args, **options, file=sys.stderr, mininterval=SECONDS, maxinterval=SECONDS, miniters=1)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line, unless nothing was done since the last one."""
        if self.n > self.initial and self.n != self._told:
            self._lines, self._told = self._lines + 1, self.n
            self.fp.write(self.line() + "\n")
            self.fp.flush()
        return True

    def clear(self, *args: Any, **options: Any) -> None:
        """Do nothing: a line of a log stays."""

    def close(self) -> None:
        """End without another line, unless there was one before."""
        if self.disable:
            return
        self.disable = True
        if self._lines and self.last_print_n != self.n:
            self.display()
        self._decr_instances(self)

    def line(self) -> str:
        """The finished part, and the time that the rest will take."""
        name = self.desc.removesuffix(": ") or "progress"
        elapsed = self.format_dict["elapsed"]
        said = until_done("", self.n, self.total, seconds=elapsed, done=self.n - self.initial, unit=_plural(self.unit))
        return f"{name}: {said}"


def until_done(what: str, number: int, total: int | None, *, seconds: float, done: int, unit: str = "") -> str:
    """How far a piece of work is, and how long the rest will take, in words.

    Args:
        what: a word in front of the number, such as `step`.
        number: what is done of the whole work.
        total: the whole work; None where that is unknown.
        seconds: the time since this start.
        done: what was done in that time.
        unit: a word behind the number, such as `images`.
    """
    reached = " ".join(filter(None, (what, f"{number:,} of {total:,}" if total else f"{number:,}", unit)))
    parts = [reached, f"{text_bar.format_interval(seconds)} so far"]
    if total and done > 0 and number < total:
        parts.append(f"about {text_bar.format_interval(seconds / done * (total - number))} left")
    return ", ".join(parts)


def _plural(unit: str) -> str:
    """The name of several items."""
    return "items" if unit == "it" else f"{unit}es" if unit.endswith("ch") else f"{unit}s"
