"""Commands that are told to stop say what goes on, and end with 128 and the signal's number."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from memtrain.files.exit_status import by_signal
from memtrain.files.shown import shown


@contextmanager
def stopped_by_signals(
    words: Sequence[str] | Callable[[], Sequence[str]], *, kept: str = "what was computed"
) -> Iterator[None]:
    """Within the context, SIGTERM, SIGUSR1, SIGINT and SIGHUP end the command with what to do next.

    Args:
        words: the command that goes on, or what says it then.
        kept: what a second start finds done.

    Raises:
        SystemExit: 128 and the signal's number.
    """
    own = os.getpid()

    def receive(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and os.getpid() != own:  # a worker: Slurm tells all processes of a job's step
            return
        raise KeyboardInterrupt(number)

    former: dict[int, Any] = {}
    try:
        for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            former[one] = signal.signal(one, receive)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield
    except KeyboardInterrupt as interrupt:
        said = signal.Signals(int(interrupt.args[0] if interrupt.args else signal.SIGINT))
        again = shown(shlex.join(words() if callable(words) else words), most=2000)
        print(f"Stopped by {said.name}; {kept} is kept. Go on with:\n  {again}", file=sys.stderr)
        sys.exit(by_signal(said))
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def continue_training(folder: Path, checkpoint: Path | str = "last", *, given: Sequence[str] = ()) -> str:
    """The command that goes on with a run.

    Args:
        folder: the folder of the run.
        checkpoint: the name or file of the checkpoint; `last` is the newest.
        given: the words of the command; `--trust` stays, because no configuration holds it.
    """
    # Imported here, because signals are caught before anything large is imported.
    from memtrain.cli.trusted import OPTION

    words = ["memtrain", "train", "--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint)]
    for place, word in enumerate(given):
        if word == OPTION:
            words += given[place : place + 2]
        elif word.startswith(f"{OPTION}="):
            words.append(word)
    return shown(shlex.join(words), most=2000)
