"""`--quiet` and `--json`, which every command has: what a command prints, and what it tells other programs.

With `--quiet` a command prints errors only. With `--json` the last line of standard output is one JSON object, and all
else goes to standard error:

- `command`: the name of the command;
- `exit_status`: as :mod:`memtrain.files.exit_status` lists them;
- `found`: what the command found; of a stage of an evaluation, what its results file holds;
- `folder` and `files`: where the results are, and what lies there;
- `error`: null, or what ended the command: its `type`, and what was `found`, `expected` and is the `remedy`.

Both together print the object and errors alone. Processes that a command starts write where the command does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

from memtrain.errors import MemtrainError
from memtrain.files.exit_status import ExitStatus, by_signal
from memtrain.files.output import careful_output, is_own_output, printed
from memtrain.files.progress import no_progress

QUIET, JSON = "--quiet", "--json"
QUIET_CHILD = "MEMTRAIN_QUIET"
"""The variable with which a quiet command tells the processes that it starts to be quiet, too."""


@dataclass
class Outcome:
    """The answer of a command to other programs."""

    command: str
    found: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    error: dict[str, Any] | None = None

    def line(self, status: int) -> str:
        """The JSON object, in one line.

        Args:
            status: the exit status of the command.
        """
        folder = self.folder
        there = folder is not None and folder.is_dir()
        files = sorted(str(one) for one in folder.iterdir() if one.name[0] != ".") if folder and there else []
        content = {
            "command": self.command,
            "exit_status": int(status),
            "found": self.found,
            "folder": None if folder is None else str(folder),
            "files": files,
            "error": self.error,
        }
        # JSON has no word for numbers that are not finite.
        finite = json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)
        return json.dumps(finite, ensure_ascii=False, allow_nan=False)


_open: list[Outcome] = []


def tell(found: Mapping[str, Any], folder: str | Path | None = None) -> None:
    """Say what a command found, for `--json`.

    Args:
        found: what was found; it is added to what was told before.
        folder: the folder of the results.
    """
    for outcome in _open[-1:]:
        outcome.found.update(found)
        outcome.folder = Path(folder) if folder is not None else outcome.folder


def tell_error(error: BaseException) -> None:
    """Say what ended a command, for `--json`."""
    told = {"type": type(error).__name__, "found": str(error), "expected": "", "remedy": ""}
    if isinstance(error, MemtrainError):
        told |= {"found": error.problem, "expected": error.expected, "remedy": error.remedy}
    if isinstance(error, SystemExit | KeyboardInterrupt):
        number = status_of(error) - ExitStatus.SIGNAL
        if number <= 0:
            return
        told |= {"type": "Stopped", "found": f"stopped by {signal.Signals(number).name}"}
    for outcome in _open[-1:]:
        outcome.error = outcome.error or told


def end(error: MemtrainError, status: ExitStatus = ExitStatus.FAILED) -> NoReturn:
    """End the command with an error.

    Args:
        error: the error, which is printed.
        status: the exit status.
    """
    tell_error(error)
    said = f"{type(error).__name__}: {error}"
    if status is ExitStatus.FAILED:
        sys.exit(said)
    print(said, file=sys.stderr)
    sys.exit(status)


def taken_output(command: str, words: Sequence[str]) -> tuple[bool, bool, list[str]]:
    """Whether a command line asks for `--quiet` and for `--json`, and its other words.

    Args:
        command: the name of the command; `plan` has a file behind `--json`, which it reads by itself.
        words: the words behind the name.
    """
    kept = []
    for place, word in enumerate(words):
        after = words[place + 1 : place + 2]
        file = command == "plan" and word == JSON and after and not after[0].startswith("-")
        if word not in (QUIET, JSON) or file:
            kept.append(word)
    return QUIET in words, JSON in words and JSON not in kept, kept


@contextmanager
def printing(command: str, words: Sequence[str]) -> Iterator[list[str]]:
    """Within the context a command prints as `--quiet` and `--json` say.

    Args:
        command: the name of the command.
        words: the words behind the name.

    Yields:
        The words without `--quiet` and `--json`.
    """
    careful_output()
    quiet, as_json, kept = taken_output(command, words)
    quiet = quiet or bool(os.environ.get(QUIET_CHILD))
    if not quiet and not as_json:
        yield kept
        return
    outcome, status = Outcome(command), int(ExitStatus.DONE)
    with ExitStack() as stack:
        to_reader = stack.enter_context(_redirected(silent=quiet))
        if quiet:
            stack.enter_context(_only_errors())
        _open.append(outcome)
        try:
            yield kept
        except BaseException as error:
            status = status_of(error)
            tell_error(error)
            raise
        finally:
            _open.pop()
            if as_json and (unwritten := printed(outcome.line(status), to_reader)) is not None:
                print(f"The JSON object could not be written: {unwritten.strerror}", file=sys.stderr)
                if not status:
                    sys.exit(ExitStatus.FAILED)


def status_of(error: BaseException) -> int:
    """The exit status of a command that ends with an exception."""
    if isinstance(error, KeyboardInterrupt):
        return by_signal(int(error.args[0]) if error.args else signal.SIGINT)
    code = error.code if isinstance(error, SystemExit) else ExitStatus.FAILED
    return int(code) if isinstance(code, int) else ExitStatus.DONE if code is None else ExitStatus.FAILED


@contextmanager
def _redirected(*, silent: bool) -> Iterator[TextIO]:
    """Within the context, what is printed goes to standard error or nowhere; yields what standard output was."""
    with ExitStack() as stack:
        target = (
            stack.enter_context(os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
            if silent
            else sys.stderr
        )
        own = sys.stdout
        if is_own_output(own):
            # Processes that the command starts have the descriptor alone.
            own.flush()
            kept = os.dup(1)
            os.dup2(target.fileno(), 1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            own = stack.enter_context(os.fdopen(kept, "w", encoding="utf-8", closefd=False))
        stack.enter_context(redirect_stdout(target))
        yield own


@contextmanager
def _only_errors() -> Iterator[None]:
    """Within the context there is neither progress nor a warning."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    before = os.environ.get(QUIET_CHILD)
    os.environ[QUIET_CHILD] = "1"
    try:
        with warnings.catch_warnings(), no_progress():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
        if before is None:
            del os.environ[QUIET_CHILD]
